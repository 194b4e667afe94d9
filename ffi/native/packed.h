// Frozen weights in fewer bits: what quantisation, dequantisation and the products over them share. Formats and their parts:
// src/device/packed.ts.
#pragma once
#include "native.h"

// Products in bf16 (gemm_bf16.c) read bf16 values of all linears of a group as one matrix.
enum { PACKED_BF16 = 1, PACKED_INT8 = 2, PACKED_NF4 = 3, PACKED_MXFP4 = 4 };
#define NF4_BLOCK 64
#define MXFP4_BLOCK 32
#define NESTED_BLOCK 256
#define MOST_LINEARS 3

// One linear of a packed weight: rows from `row` up to `end` of the group's.
typedef struct {
  int64_t row, end;
  void *codes; // of the linear's own first row on
  float *scale; // of mxfp4 bytes
  uint8_t *absmax;
  float *nested, *mean;
} packed_linear;

// A packed weight [rows, columns], as src/ops/packed.ts writes it: all fields are 64 bits wide.
typedef struct {
  int64_t format, columns, count;
  packed_linear linears[MOST_LINEARS];
} packed_weight;

// Writes rows [row, row + rows) and columns [column, column + columns) as f32 to `to`, rows `ld` apart. `column` is even.
void packed_expand(const packed_weight *w, int64_t row, int64_t rows, int64_t column, int64_t columns, float *to, int64_t ld);
