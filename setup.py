from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "vela._dataplane",
            sources=["vela/_dataplane.c", *sorted(glob("vela/native/*.c"))],
            depends=sorted(glob("vela/native/*.h")),
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra"],
        )
    ]
)
