import tempfile
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# As the data path uses it: OpenSSL 3.0 or newer.
OPENSSL = """
#include <openssl/evp.h>
int main(void) { return EVP_CIPHER_fetch(0, "AES-256-GCM", 0) == 0; }
"""


class BuildExtension(build_ext):
    """Builds the data path with OpenSSL, or without it where it is not there."""

    def build_extensions(self):
        if self.has_openssl():
            for each in self.extensions:
                each.define_macros.append(("VELA_LIBCRYPTO", None))
                each.libraries.append("crypto")
        else:
            self.warn("no OpenSSL 3 (libssl-dev): this build cannot encrypt circuits")
        super().build_extensions()

    def has_openssl(self):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "openssl.c")
            source.write_text(OPENSSL)
            try:
                objects = self.compiler.compile([str(source)], output_dir="/")
                self.compiler.link_executable(
                    objects, "openssl", output_dir=folder, libraries=["crypto"]
                )
            except Exception:
                return False
        return True


setup(
    cmdclass={"build_ext": BuildExtension},
    ext_modules=[
        Extension(
            "vela.dataplane._native",
            sources=sorted(glob("vela/dataplane/native/*.c")),
            depends=sorted(glob("vela/dataplane/native/*.h")),
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra"],
        )
    ],
)
