// Matrix products by AVX-512, where the processor has it; else they are OpenBLAS's (product.c).
#pragma once
#include "packed.h"

// c[m, n] = alpha op(a) op(b) + beta c, all row-major; op transposes where asked: a is then [k, m], b [n, k].
typedef struct {
  int trans_a, trans_b, m, n, k;
  float alpha, beta;
  const float *a;
  int lda;
  const float *b; // or
  const packed_weight *packed;
  int ldb;
  float *c;
  int ldc;
} gemm_args;

// Whether gemm and gemm_here may be called.
int gemm_works(void);

void gemm(const gemm_args *args);      // on all threads
void gemm_here(const gemm_args *args); // in the calling thread
