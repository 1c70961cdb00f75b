/* The cores that threads run on where cores differ: those that were chosen (`runtime/system/fast_cores.py`), of Linux and Android. Elsewhere the
   system chooses.

   Members stay on them. Who leads is a thread of the program's own: it goes there for a step, and may then run again where it could. */

#define _GNU_SOURCE
#include <sched.h>
#include <stddef.h>
#include <stdint.h>

/* cores.c */
void cupola_lock_cores(void);
void cupola_unlock_cores(void);
void cupola_read_home(int index);

#if defined(__linux__)
enum { WORD_BITS = 8 * sizeof(unsigned long) };
static union {
  cpu_set_t set;
  unsigned long words[sizeof(cpu_set_t) / sizeof(unsigned long)];
} chosen;
static cpu_set_t before; /* of the thread that leads */
static int is_chosen, is_leading;

/* None is any. Nobody runs meanwhile. */
void cupola_choose_cores(const int32_t *cores, int32_t count) {
  for (size_t i = 0; i < sizeof chosen.words / sizeof *chosen.words; ++i) chosen.words[i] = 0;
  is_chosen = 0;
  for (int32_t i = 0; i < count; ++i) {
    if (cores[i] < 0 || cores[i] >= (int32_t)(8 * sizeof chosen)) continue; /* more cores than there are bits */
    chosen.words[cores[i] / WORD_BITS] |= 1ul << cores[i] % WORD_BITS;
    is_chosen = 1;
  }
}

/* Moves the caller to the cores that were chosen, unless the system keeps it from all of them. */
void cupola_take_cores(void) {
  if (is_chosen) sched_setaffinity(0, sizeof chosen.set, &chosen.set);
}

void cupola_lead_on_cores(void) {
  if (!is_chosen) return;
  cupola_lock_cores(); /* nobody moves it, which narrows where it may run for a moment */
  is_leading = sched_getaffinity(0, sizeof before, &before) >= 0 && sched_setaffinity(0, sizeof chosen.set, &chosen.set) == 0;
  cupola_unlock_cores();
}

void cupola_leave_cores(void) {
  if (!is_leading) return;
  cupola_lock_cores();
  sched_setaffinity(0, sizeof before, &before);
  cupola_read_home(0); /* who still means to move it lets it run there again */
  cupola_unlock_cores();
  is_leading = 0;
}
#else
void cupola_choose_cores(const int32_t *cores, int32_t count) { (void)cores, (void)count; }
void cupola_take_cores(void) {}
void cupola_lead_on_cores(void) {}
void cupola_leave_cores(void) {}
#endif
