// Generation: keys and values are kept, and each new row attends over those of its sequence.
//
// A piece of work is one query head of one row: its sums run over the keys in their order, whatever else is computed in the
// pass, and wherever its pages lie. Rows count as in src/ops/decode.ts.
#include "native.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  const float *qkv;
  float *cache, *out;
  const float *sinks; // of each head, or NULL
  const int32_t *bounds, *places, *pages;
  int page, q_heads, k_heads, dim, window, longest;
  float scale, cap; // cap: 0 for none
} decode_args;

/** Where a row that counts as if its sequence's lay next to each other is in the cache. */
static int64_t cache_row(const decode_args *a, int64_t row) {
  return (int64_t)a->pages[row / a->page] * a->page + row % a->page;
}

static void write_range(void *context, int64_t begin, int64_t end) {
  const decode_args *a = context;
  int64_t skip = (int64_t)a->q_heads * a->dim, width = 2 * (int64_t)a->k_heads * a->dim;
  for (int64_t m = begin; m < end; m++)
    if (a->places[m] >= 0)
      memcpy(a->cache + cache_row(a, a->places[m]) * width, a->qkv + m * (skip + width) + skip, sizeof(float) * (size_t)width);
}

void cache_write(const float *qkv, const int32_t *places, const int32_t *pages, float *cache, int page, int rows, int q_heads,
                 int k_heads, int dim) {
  decode_args a = {qkv, cache, NULL, NULL, NULL, places, pages, page, q_heads, k_heads, dim, 0, 0, 0, 0};
  parallel(rows, 16, write_range, &a);
}

static void attend(const decode_args *a, int64_t m, int head, float *p) {
  int per_key = a->q_heads / a->k_heads, width = 2 * a->k_heads * a->dim;
  float *out = a->out + (m * a->q_heads + head) * a->dim;
  memset(out, 0, sizeof(float) * (size_t)a->dim);
  int32_t first = a->bounds[2 * m], last = a->bounds[2 * m + 1];
  if (first < 0) first = ~first; // of a tile
  if (a->window > 0 && last - a->window > first) first = last - a->window;
  int count = last - first;
  if (count <= 0) return;
  const float *q = a->qkv + (m * (a->q_heads + 2 * a->k_heads) + head) * a->dim;
  const float *keys = a->cache + head / per_key * a->dim, *values = keys + a->k_heads * a->dim;
  float max = -INFINITY, total = 0;
  for (int j = 0; j < count;) { // page by page
    const float *k = keys + cache_row(a, first + j) * width;
    int end = j + a->page - (first + j) % a->page;
    for (; j < end && j < count; j++, k += width) {
      p[j] = a->scale * dot(q, k, a->dim);
      if (a->cap > 0) p[j] = a->cap * tanhf(p[j] / a->cap);
      max = p[j] > max ? p[j] : max;
    }
  }
  if (a->sinks) max = a->sinks[head] > max ? a->sinks[head] : max;
  for (int j = 0; j < count; j++) p[j] = fast_exp(p[j] - max);
  for (int j = 0; j < count; j++) total += p[j];
  if (a->sinks) total += fast_exp(a->sinks[head] - max);
  for (int j = 0; j < count;) {
    const float *v = values + cache_row(a, first + j) * width;
    int end = j + a->page - (first + j) % a->page;
    for (; j < end && j < count; j++, v += width)
      for (int d = 0; d < a->dim; d++) out[d] = fused(p[j], v[d], out[d]);
  }
  for (int d = 0; d < a->dim; d++) out[d] /= total;
}

static void decode_range(void *context, int64_t begin, int64_t end) {
  const decode_args *a = context;
  float *p = malloc(sizeof(float) * (size_t)a->longest);
  if (!p) abort(); // a few KiB: the machine is beyond saving
  for (int64_t piece = begin; piece < end; piece++) attend(a, piece / a->q_heads, (int)(piece % a->q_heads), p);
  free(p);
}

void attention_decode(const float *qkv, const float *cache, const int32_t *pages, const int32_t *bounds, const float *sinks,
                      float *out, int page, int rows, int q_heads, int k_heads, int dim, float scale, int window, float cap) {
  int longest = 1;
  for (int m = 0; m < rows; m++) {
    int first = bounds[2 * m], count = bounds[2 * m + 1] - (first < 0 ? ~first : first);
    longest = count > longest ? count : longest;
  }
  decode_args a = {qkv,  (float *)cache, out,     sinks, bounds, NULL,    pages,
                   page, q_heads,        k_heads, dim,   window, longest, scale, cap};
  parallel((int64_t)rows * q_heads, 1, decode_range, &a);
}
