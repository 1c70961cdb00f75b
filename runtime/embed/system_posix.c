/* The system: Linux, Android, macOS. */
#if !defined(_WIN32)
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "internal.h"

int map_file(const char *path, file_map *map) {
  struct stat status;
  int descriptor = open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return -1;
  int failed = fstat(descriptor, &status) || status.st_size <= 0;
  void *data = failed ? MAP_FAILED : mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
  close(descriptor);
  if (data == MAP_FAILED) return -1;
  *map = (file_map){data, (size_t)status.st_size, NULL};
  return 0;
}

void unmap_file(file_map *map) {
  if (map->data) munmap((void *)map->data, map->length);
}

void *open_library(const char *path, char *message) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) FAIL(message, "%s", dlerror());
  return library;
}

void *library_symbol(void *library, const char *name) { return dlsym(library, name); }

int32_t count_cores(void) {
  long count = sysconf(_SC_NPROCESSORS_ONLN);
  return count < 1 ? 1 : (int32_t)count;
}

#if defined(__APPLE__)
const char *system_name(void) { return "macos"; }
#elif defined(__ANDROID__)
const char *system_name(void) { return "android"; }
#else
const char *system_name(void) { return "linux"; }
#endif
#endif
