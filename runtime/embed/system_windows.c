/* The system: Windows. */
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdio.h>

#include "internal.h"

enum { MAX_PATH_UNITS = 32768 };

static wchar_t *wide(const char *path, wchar_t *units) {
  return MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, units, MAX_PATH_UNITS) ? units : NULL;
}

int map_file(const char *path, file_map *map) {
  static wchar_t units[MAX_PATH_UNITS]; /* models are opened one after the other */
  LARGE_INTEGER size = {0};
  if (!wide(path, units)) return -1;
  HANDLE file = CreateFileW(units, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
  if (file == INVALID_HANDLE_VALUE) return -1;
  HANDLE mapping = GetFileSizeEx(file, &size) && size.QuadPart ? CreateFileMappingW(file, NULL, PAGE_READONLY, 0, 0, NULL) : NULL;
  CloseHandle(file);
  void *data = mapping ? MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0) : NULL;
  if (!data) {
    if (mapping) CloseHandle(mapping);
    return -1;
  }
  *map = (file_map){data, (size_t)size.QuadPart, mapping};
  return 0;
}

void unmap_file(file_map *map) {
  if (!map->data) return;
  UnmapViewOfFile(map->data);
  CloseHandle(map->handle);
}

void *open_library(const char *path, char *message) {
  static wchar_t units[MAX_PATH_UNITS];
  HMODULE library = wide(path, units) ? LoadLibraryExW(units, NULL, LOAD_WITH_ALTERED_SEARCH_PATH) : NULL;
  if (!library) FAIL(message, "Windows can't load it: error %lu", GetLastError());
  return library;
}

void *library_symbol(void *library, const char *name) { return (void *)GetProcAddress(library, name); }

int32_t count_cores(void) {
  SYSTEM_INFO info;
  GetSystemInfo(&info);
  return (int32_t)info.dwNumberOfProcessors;
}

const char *system_name(void) { return "windows"; }
#endif
