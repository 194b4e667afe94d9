// Tiles of products in bf16 by AMX (Intel since Sapphire Rapids), for gemm_bf16.c.
#pragma once
#include "tiles.h"

#ifdef __x86_64__
#define AMX_ROWS 32 // of a call, at most
#define AMX_STEP 16 // pairs of an instruction

// Whether the functions below may be called.
int amx_works(void);

// Before a thread's first call, and after its last: the tiles' sizes, and that they need not be saved any more.
void amx_begin(void);
void amx_end(void);

// Up to AMX_ROWS rows by the columns of a panel. Of the rows of a, whole sixteens are read, and of their pairs, as of the
// panel's, whole AMX_STEPs, which are zero beyond `depth`.
typedef struct {
  const int32_t *a; // pairs of bf16, `pitch` apart
  int64_t pitch;
  const int32_t *b;
  int depth, vectors;
  const char *const *ahead; // as in gemm_bf16.c
  int each;
  tile_place to;
} amx_args;

void amx_tile(const amx_args *args);
#endif
