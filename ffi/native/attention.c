// Causal attention within sequences, blocked over queries; the products of each block are product.c's.
//
// A piece of work is one key head of one sequence: its dk and dv are summed by one thread, in a fixed order.
#include "native.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define QUERIES 64 // rows of a block of scores
enum { PLAIN = 0, TRANSPOSED = 1 };

typedef struct {
  sgemm_fn sgemm;
  const float *qkv, *dout, *out;
  float *to, *lse, *delta; // forward: out; backward: dqkv
  const int32_t *sequences; // first row and length of each
  int rows, q_heads, k_heads, dim, window, longest;
  float scale, cap; // cap: 0 for none
} attention_args;

typedef struct {
  const float *q, *k, *v;
  int width, first_key, keys; // keys of the block's scores: first_key .. first_key + keys - 1, within the sequence
} block_view;

static block_view view_block(const attention_args *a, int64_t start, int head, int query, int queries) {
  int per_key = a->q_heads / a->k_heads, width = (a->q_heads + 2 * a->k_heads) * a->dim;
  int first = a->window > 0 && query - a->window + 1 > 0 ? query - a->window + 1 : 0;
  const float *row = a->qkv + start * width;
  block_view b = {row + (int64_t)query * width + head * a->dim,
                  row + (int64_t)first * width + (a->q_heads + head / per_key) * a->dim, NULL, width, first,
                  query + queries - first};
  b.v = b.k + a->k_heads * a->dim;
  return b;
}

// The keys that query `i` of a block sees, as columns of its scores.
static void visible(const attention_args *a, const block_view *b, int query, int *from, int *to) {
  *from = a->window > 0 && query - a->window + 1 > b->first_key ? query - a->window + 1 - b->first_key : 0;
  *to = query + 1 - b->first_key;
}

static void scores(const attention_args *a, const block_view *b, int queries, float *s) {
  product_here(a->sgemm, PLAIN, TRANSPOSED, queries, b->keys, a->dim, a->scale, b->q, b->width, b->k, b->width, 0, s, b->keys);
  if (a->cap > 0)
    for (int64_t i = 0; i < (int64_t)queries * b->keys; i++) s[i] = a->cap * tanhf(s[i] / a->cap);
}

static void forward_block(const attention_args *a, int64_t start, int head, int query, int queries, float *s) {
  block_view b = view_block(a, start, head, query, queries);
  scores(a, &b, queries, s);
  for (int i = 0; i < queries; i++) {
    float *row = s + (int64_t)i * b.keys, max = -INFINITY, total = 0;
    int from, to;
    visible(a, &b, query + i, &from, &to);
    for (int j = from; j < to; j++) max = row[j] > max ? row[j] : max;
    for (int j = 0; j < from; j++) row[j] = 0;
    for (int j = from; j < to; j++) row[j] = fast_exp(row[j] - max);
    for (int j = from; j < to; j++) total += row[j];
    for (int j = from; j < to; j++) row[j] /= total;
    for (int j = to; j < b.keys; j++) row[j] = 0;
    a->lse[(int64_t)head * a->rows + start + query + i] = max + logf(total);
  }
  int out_width = a->q_heads * a->dim;
  product_here(a->sgemm, PLAIN, PLAIN, queries, a->dim, b.keys, 1, s, b.keys, b.v, b.width, 0,
           a->to + (start + query) * out_width + head * a->dim, out_width);
}

static void backward_block(const attention_args *a, int64_t start, int head, int query, int queries, float *p, float *dp) {
  block_view b = view_block(a, start, head, query, queries);
  int per_key = a->q_heads / a->k_heads, out_width = a->q_heads * a->dim;
  float *d_row = a->to + start * b.width;
  float *dq = d_row + (int64_t)query * b.width + head * a->dim;
  float *dk = d_row + (int64_t)b.first_key * b.width + (a->q_heads + head / per_key) * a->dim, *dv = dk + a->k_heads * a->dim;
  const float *dout = a->dout + (start + query) * out_width + head * a->dim;
  const float *out = a->out + (start + query) * out_width + head * a->dim;
  scores(a, &b, queries, p);
  product_here(a->sgemm, PLAIN, TRANSPOSED, queries, b.keys, a->dim, 1, dout, out_width, b.v, b.width, 0, dp, b.keys);
  for (int i = 0; i < queries; i++) {
    float *p_row = p + (int64_t)i * b.keys, *dp_row = dp + (int64_t)i * b.keys;
    int64_t at = (int64_t)head * a->rows + start + query + i;
    float lse = a->lse[at], delta = dot(dout + (int64_t)i * out_width, out + (int64_t)i * out_width, a->dim);
    int from, to;
    visible(a, &b, query + i, &from, &to);
    a->delta[at] = delta;
    for (int j = 0; j < from; j++) p_row[j] = dp_row[j] = 0;
    for (int j = from; j < to; j++) {
      float share = a->cap > 0 ? p_row[j] / a->cap : 0, slope = fused(-share, share, 1.0f); // of the cap, at this score
      p_row[j] = fast_exp(p_row[j] - lse);
      dp_row[j] = p_row[j] * (dp_row[j] - delta) * slope * a->scale;
    }
    for (int j = to; j < b.keys; j++) p_row[j] = dp_row[j] = 0;
  }
  product_here(a->sgemm, TRANSPOSED, PLAIN, b.keys, a->dim, queries, 1, p, b.keys, dout, out_width, 1, dv, b.width);
  product_here(a->sgemm, PLAIN, PLAIN, queries, a->dim, b.keys, 1, dp, b.keys, b.k, b.width, 0, dq, b.width);
  product_here(a->sgemm, TRANSPOSED, PLAIN, b.keys, a->dim, queries, 1, dp, b.keys, b.q, b.width, 1, dk, b.width);
}

static void attention_range(void *context, int64_t begin, int64_t end) {
  const attention_args *a = context;
  int per_key = a->q_heads / a->k_heads, width = (a->q_heads + 2 * a->k_heads) * a->dim;
  size_t block = (size_t)QUERIES * (size_t)a->longest;
  float *scratch = malloc(sizeof(float) * block * 2);
  if (!scratch) abort(); // a few MiB at most: the machine is beyond saving
  for (int64_t piece = begin; piece < end; piece++) {
    int64_t start = a->sequences[piece / a->k_heads * 2];
    int length = a->sequences[piece / a->k_heads * 2 + 1], key_head = (int)(piece % a->k_heads);
    if (a->dout)
      for (int m = 0; m < length; m++) { // dk and dv are sums over queries and query heads
        float *dk = a->to + (start + m) * width + (a->q_heads + key_head) * a->dim;
        memset(dk, 0, sizeof(float) * (size_t)a->dim);
        memset(dk + a->k_heads * a->dim, 0, sizeof(float) * (size_t)a->dim);
      }
    for (int head = key_head * per_key; head < (key_head + 1) * per_key; head++)
      for (int query = 0; query < length; query += QUERIES) {
        int queries = length - query < QUERIES ? length - query : QUERIES;
        if (a->dout) backward_block(a, start, head, query, queries, scratch, scratch + block);
        else forward_block(a, start, head, query, queries, scratch);
      }
  }
  free(scratch);
}

void attention_forward(sgemm_fn sgemm, const float *qkv, const int32_t *sequences, int count, int longest, float *out,
                       float *lse, int rows, int q_heads, int k_heads, int dim, float scale, int window, float cap) {
  attention_args a = {sgemm, qkv,     NULL,    NULL, out,    lse,     NULL,  sequences,
                      rows,  q_heads, k_heads, dim,  window, longest, scale, cap};
  parallel((int64_t)count * k_heads, 1, attention_range, &a);
}

void attention_backward(sgemm_fn sgemm, const float *qkv, const int32_t *sequences, int count, int longest,
                        const float *out, const float *lse, const float *dout, float *delta, float *dqkv, int rows,
                        int q_heads, int k_heads, int dim, float scale, int window, float cap) {
  attention_args a = {sgemm, qkv,     dout,    out, dqkv,   (float *)lse, delta, sequences,
                      rows,  q_heads, k_heads, dim, window, longest,      scale, cap};
  parallel((int64_t)count * k_heads, 1, attention_range, &a);
}

typedef struct {
  float *out, *lse;
  const float *sinks;
  const int32_t *bounds;
  int rows, heads, dim;
} sink_args;

static void sink_range(void *context, int64_t begin, int64_t end) {
  const sink_args *a = context;
  for (int64_t m = begin; m < end; m++)
    for (int h = 0; h < a->heads && a->bounds[2 * m] < a->bounds[2 * m + 1]; h++) {
      float *out = a->out + (m * a->heads + h) * a->dim, *lse = a->lse + (int64_t)h * a->rows + m;
      float max = *lse > a->sinks[h] ? *lse : a->sinks[h];
      float with = max + logf(expf(*lse - max) + expf(a->sinks[h] - max)), share = expf(*lse - with);
      for (int d = 0; d < a->dim; d++) out[d] *= share;
      *lse = with;
    }
}
// Another logit of each head, without a value, in the softmax that attention_forward has made.
void attention_sink(float *out, float *lse, const float *sinks, const int32_t *bounds, int rows, int heads, int dim) {
  parallel(rows, 16, sink_range, &(sink_args){out, lse, sinks, bounds, rows, heads, dim});
}
