/* What the processor can do, in the words that manifests have: those of Linux's /proc/cpuinfo. */
#define _GNU_SOURCE
#include <string.h>

#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>

const char *architecture_name(void) { return "x86_64"; }

/* Where CPUID says it (Intel's manual, volume 2A; AMD's, volume 3): leaf, subleaf, register (0 eax, 1 ebx, 2 ecx, 3 edx), bit; and which
   registers the system must save (XCR0): 6 is AVX's, E6 AVX-512's, 60000 AMX's. */
static const struct {
  const char *name;
  unsigned leaf, subleaf, reg, bit, saved;
} table[] = {
    {"fma", 1, 0, 2, 12, 0x6},         {"f16c", 1, 0, 2, 29, 0x6},         {"avx2", 7, 0, 1, 5, 0x6},          {"avx512f", 7, 0, 1, 16, 0xE6},
    {"avx512dq", 7, 0, 1, 17, 0xE6},   {"avx512bw", 7, 0, 1, 30, 0xE6},    {"avx512vl", 7, 0, 1, 31, 0xE6},    {"avx512_vnni", 7, 0, 2, 11, 0xE6},
    {"avx_vnni", 7, 1, 0, 4, 0x6},     {"avx512_bf16", 7, 1, 0, 5, 0xE6},  {"amx_bf16", 7, 0, 3, 22, 0x600E6}, {"amx_tile", 7, 0, 3, 24, 0x600E6},
    {"sse4a", 0x80000001, 0, 2, 6, 0x0},
};

int has_feature(const char *name) {
  unsigned low = 0, high = 0, r[4] = {0};
  if (!__get_cpuid(1, &r[0], &r[1], &r[2], &r[3]) || !(r[2] >> 27 & 1)) return 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  for (size_t i = 0; i < sizeof table / sizeof *table; ++i) {
    if (strcmp(table[i].name, name)) continue;
    memset(r, 0, sizeof r);
    if (!__get_cpuid_count(table[i].leaf, table[i].subleaf, &r[0], &r[1], &r[2], &r[3])) return 0;
    return (low & table[i].saved) == table[i].saved && (r[table[i].reg] >> table[i].bit & 1);
  }
  return 0;
}

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
/* arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), in https://docs.kernel.org/arch/x86/xstate.html */
static int request_tiles(void) { return syscall(SYS_arch_prctl, 0x1023L, 18L) == 0; }
#else
static int request_tiles(void) { return 0; }
#endif

int request_features(const char *const *names, int count) {
  for (int i = 0; i < count; ++i)
    if (!strncmp(names[i], "amx", 3)) return request_tiles();
  return 1;
}

#else
int request_features(const char *const *names, int count) { return (void)names, (void)count, 1; }

#if defined(__aarch64__)
const char *architecture_name(void) { return "aarch64"; }
#elif defined(__riscv)
const char *architecture_name(void) { return "riscv64"; }
#else
const char *architecture_name(void) { return "unknown"; }
#endif

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
/* Bits of AT_HWCAP, and from 64 on of AT_HWCAP2 (Linux's arch/arm64/include/uapi/asm/hwcap.h). */
static const struct {
  const char *name;
  unsigned bit;
} table[] = {{"asimd", 1}, {"atomics", 8}, {"fphp", 9}, {"asimdhp", 10}, {"jscvt", 13}, {"fcma", 14}, {"lrcpc", 15}, {"asimddp", 20}, {"i8mm", 64 + 13}};

int has_feature(const char *name) {
  for (size_t i = 0; i < sizeof table / sizeof *table; ++i)
    if (!strcmp(table[i].name, name)) return table[i].bit < 64 ? getauxval(AT_HWCAP) >> table[i].bit & 1 : getauxval(AT_HWCAP2) >> (table[i].bit - 64) & 1;
  return 0;
}
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
/* https://developer.apple.com/documentation/kernel/1387446-sysctlbyname/determining_instruction_set_characteristics */
static const struct {
  const char *name, *key;
} table[] = {
    {"atomics", "hw.optional.arm.FEAT_LSE"},   {"fphp", "hw.optional.arm.FEAT_FP16"},  {"asimdhp", "hw.optional.arm.FEAT_FP16"},
    {"jscvt", "hw.optional.arm.FEAT_JSCVT"},   {"fcma", "hw.optional.arm.FEAT_FCMA"},  {"lrcpc", "hw.optional.arm.FEAT_LRCPC"},
    {"asimddp", "hw.optional.arm.FEAT_DotProd"}, {"i8mm", "hw.optional.arm.FEAT_I8MM"},
};

int has_feature(const char *name) {
  int value = 0;
  size_t length = sizeof value;
  if (!strcmp(name, "asimd")) return 1;
  for (size_t i = 0; i < sizeof table / sizeof *table; ++i)
    if (!strcmp(table[i].name, name)) return !sysctlbyname(table[i].key, &value, &length, NULL, 0) && value;
  return 0;
}
#elif defined(__aarch64__) && defined(_WIN32)
#include <windows.h>
/* PF_ARM_V81_ATOMIC_INSTRUCTIONS_AVAILABLE and so on, of winnt.h, whose older ones lack the last. */
static const struct {
  const char *name;
  unsigned number;
} table[] = {{"atomics", 34}, {"asimddp", 43}, {"jscvt", 44}, {"lrcpc", 45}, {"i8mm", 66}, {"asimdhp", 67}, {"fphp", 67}};

int has_feature(const char *name) {
  if (!strcmp(name, "asimd")) return 1;
  for (size_t i = 0; i < sizeof table / sizeof *table; ++i)
    if (!strcmp(table[i].name, name)) return IsProcessorFeaturePresent(table[i].number);
  return 0;
}
#else
int has_feature(const char *name) { return (void)name, 0; }
#endif
#endif
