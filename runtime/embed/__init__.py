"""C sources that open an artifact in an app without Python: `cupola.h` is their interface, `main.c` a program over it."""
