// Products in bf16 by AMX: 16 rows by 16 columns by 32 terms an instruction, of the rounded rows and packed panels that
// gemm_bf16.c makes. Six tiles hold sums, two what is multiplied.
//
// An element's sum is the same wherever it lies: an instruction adds its pairs in their order, whatever the other rows and
// columns hold, and instructions follow each other from the first pair on. It is not that of AVX512-BF16, bit for bit.
#include "gemm_amx.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define AMX __attribute__((noinline, target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl")))
#define FENCE __asm__ volatile("" ::: "memory") // loads of tiles do not tell the compiler what they read

#ifndef ARCH_REQ_XCOMP_PERM
#define ARCH_REQ_XCOMP_PERM 0x1023
#endif
#define TILE_DATA 18

static int is_there(void) {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  if (!(d & (1u << 22)) || !(d & (1u << 24))) return 0; // AMX-BF16, AMX-TILE
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0; // Linux saves tiles of processes that ask, since 5.16
}

static int allowed;

// Lets products in bf16 use AMX where the processor and the system can; returns whether they do. Before the first product.
int native_amx(int allow) {
  static int there = -1;
  if (there < 0) there = is_there();
  allowed = allow && there;
  return allowed;
}
int amx_works(void) { return allowed; }

AMX void amx_begin(void) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; // of a row
    uint8_t rows[16];
  } sizes = {.palette = 1};
  for (int i = 0; i < 8; i++) sizes.bytes[i] = 64, sizes.rows[i] = 16;
  FENCE;
  _tile_loadconfig(&sizes);
}
AMX void amx_end(void) { _tile_release(); }

// The three tiles of columns of one tile of rows, whose sums are in tiles S0 to S2.
#define ROW_OF_TILES(A, S0, S1, S2, VECTORS_)                                                                                  \
  _tile_loadd(6, (A) + at, pitch);                                                                                             \
  _tile_loadd(7, b, 4 * PANEL);                                                                                                \
  _tile_dpbf16ps(S0, 6, 7);                                                                                                    \
  if (VECTORS_ > 1) {                                                                                                          \
    _tile_loadd(7, b + 16, 4 * PANEL);                                                                                         \
    _tile_dpbf16ps(S1, 6, 7);                                                                                                  \
  }                                                                                                                            \
  if (VECTORS_ > 2) {                                                                                                          \
    _tile_loadd(7, b + 32, 4 * PANEL);                                                                                         \
    _tile_dpbf16ps(S2, 6, 7);                                                                                                  \
  }

#define STORE_ROW(TO, S0, S1, S2, VECTORS_)                                                                                    \
  _tile_stored(S0, TO, 4 * ld);                                                                                                \
  if (VECTORS_ > 1) _tile_stored(S1, (TO) + 16, 4 * ld);                                                                       \
  if (VECTORS_ > 2) _tile_stored(S2, (TO) + 32, 4 * ld);

// `to` f32, rows `ld` apart, gets the sums of two tiles of rows, or of one.
#define BLOCK(NAME, TWO, VECTORS_)                                                                                             \
  AMX static void NAME(const amx_args *t, float *to, int64_t ld) {                                                             \
    const char *const *ahead = t->ahead;                                                                                       \
    const int64_t pitch = 4 * t->pitch;                                                                                        \
    const int32_t *b = t->b;                                                                                                   \
    FENCE;                                                                                                                     \
    _tile_zero(0);                                                                                                             \
    _tile_zero(1);                                                                                                             \
    _tile_zero(2);                                                                                                             \
    _tile_zero(3);                                                                                                             \
    _tile_zero(4);                                                                                                             \
    _tile_zero(5);                                                                                                             \
    for (int64_t at = 0; at < t->depth; at += AMX_STEP, b += AMX_STEP * PANEL) {                                               \
      for (const char *const *last = ahead + t->each; ahead < last; ahead++) __builtin_prefetch(*ahead, 0, 2);                 \
      ROW_OF_TILES(t->a, 0, 1, 2, VECTORS_)                                                                                    \
      if (TWO) {                                                                                                               \
        ROW_OF_TILES(t->a + 16 * t->pitch, 3, 4, 5, VECTORS_)                                                                  \
      }                                                                                                                        \
    }                                                                                                                          \
    STORE_ROW(to, 0, 1, 2, VECTORS_)                                                                                           \
    if (TWO) {                                                                                                                 \
      STORE_ROW(to + 16 * ld, 3, 4, 5, VECTORS_)                                                                               \
    }                                                                                                                          \
    FENCE;                                                                                                                     \
  }
BLOCK(one_1, 0, 1)
BLOCK(one_2, 0, 2)
BLOCK(one_3, 0, 3)
BLOCK(two_1, 1, 1)
BLOCK(two_2, 1, 2)
BLOCK(two_3, 1, 3)

AMX void amx_tile(const amx_args *t) {
  static void (*const blocks[2][VECTORS])(const amx_args *, float *, int64_t) = {{one_1, one_2, one_3}, {two_1, two_2, two_3}};
  const tile_place *to = &t->to;
  const int two = to->rows > 16;
  void (*const block)(const amx_args *, float *, int64_t) = blocks[two][t->vectors - 1];
  if (to->beta == 0 && to->rows == 16 << two && to->last == 0xffff) return block(t, to->c, to->ldc);
  float sums[AMX_ROWS * PANEL] __attribute__((aligned(64)));
  block(t, sums, PANEL);
  const __m512 beta = _mm512_set1_ps(to->beta);
  for (int i = 0; i < to->rows; i++)
    for (int j = 0; j < t->vectors; j++) {
      const __mmask16 mask = j == t->vectors - 1 ? to->last : 0xffff;
      float *c = to->c + i * to->ldc + 16 * j;
      __m512 sum = _mm512_load_ps(sums + i * PANEL + 16 * j);
      if (to->beta != 0) sum = _mm512_add_ps(sum, _mm512_mul_ps(beta, _mm512_maskz_loadu_ps(mask, c)));
      _mm512_mask_storeu_ps(c, mask, sum);
    }
}

#else
int native_amx(int allow) {
  (void)allow;
  return 0;
}
#endif
