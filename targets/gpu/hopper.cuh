/* What kernels for compute capability 9.0 call beside `matrix.cuh`: bulk copies into shared memory that complete a barrier there, and products
   of warpgroups (PTX ISA 8.5, 9.7.15), whose first matrix (64 x 16) is in the registers of four warps, as that of mma.m16n8k16 in each. */

DEVICE unsigned shared_address(const void *memory) { return (unsigned)__cvta_generic_to_shared(memory); }

/* A barrier of 8 bytes that completes a phase when a thread has said how many bytes to expect, and they are there. */
DEVICE void make_barrier(void *barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}

/* Makes what was done to barriers and shared memory visible to copies. */
DEVICE void publish_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void expect_bytes(void *barrier, int bytes) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

/* A multiple of 16 bytes, at addresses that are such. */
DEVICE void copy_bulk(void *to, const void *from, int bytes, void *barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

/* Waits for the end of a phase: its number's last bit is `parity`. */
DEVICE void wait_for_barrier(void *barrier, int parity) {
  asm volatile(
      "{ .reg .pred done; waiting: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra waiting; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void wait_for_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

/* The second matrix: rows of 128 bytes, each a column of it, whose pieces of 16 bytes are exchanged within 8 rows; `rows` is a multiple of 1024
   bytes, and the product takes the 32 bytes from 32 step on. */
DEVICE unsigned long long descriptor(const int *rows, int step) {
  return (unsigned long long)((shared_address(rows) + 32 * step) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
