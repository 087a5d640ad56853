from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "vela.dataplane._native",
            sources=sorted(glob("vela/dataplane/native/*.c")),
            depends=sorted(glob("vela/dataplane/native/*.h")),
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra"],
        )
    ]
)
