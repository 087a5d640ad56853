"""Stock Debian systems, made here: roots to chroot into, guests to boot."""
