// Heads of attention over latents: q, k and v as attention reads them, and back (src/ops/latent.ts).
#include "native.h"
#include <string.h>

typedef struct {
  const float *from;
  float *queries, *keys, *shared, *qkv; // what the forward pass reads it does not write
  int columns, heads, dim, plain, rotated, value, interleaved;
} latent_args;

static inline size_t bytes(int features) { return sizeof(float) * (size_t)features; }

// Where feature i of those that are rotated lies by halves.
static inline int place(const latent_args *a, int i) {
  return a->interleaved ? (i % 2) * (a->rotated / 2) + i / 2 : i;
}

static void heads_range(void *context, int64_t begin, int64_t end) {
  const latent_args *a = context;
  int Q = a->heads, D = a->dim, N = a->plain, R = a->rotated, U = a->value;
  for (int64_t m = begin; m < end; m++) {
    const float *queries = a->queries + m * Q * (N + R), *keys = a->keys + m * Q * (N + U);
    const float *shared = a->shared + (m + 1) * a->columns - R;
    float *q = a->qkv + m * 3 * Q * D, *k = q + Q * D, *v = k + Q * D;
    memset(q, 0, 3 * bytes(Q * D));
    for (int h = 0; h < Q; h++, queries += N + R, keys += N + U, q += D, k += D, v += D) {
      for (int i = 0; i < R; i++) q[place(a, i)] = queries[N + i], k[place(a, i)] = shared[i];
      memcpy(q + R, queries, bytes(N));
      memcpy(k + R, keys, bytes(N));
      memcpy(v, keys + N, bytes(U));
    }
  }
}
void latent_heads(const float *queries, const float *keys, const float *shared, float *qkv, int rows, int columns, int heads,
                  int dim, int plain, int rotated, int value, int interleaved) {
  latent_args a = {NULL, (float *)queries, (float *)keys, (float *)shared, qkv, columns, heads, dim, plain, rotated, value,
                   interleaved};
  parallel(rows, 16, heads_range, &a);
}

static void backward_range(void *context, int64_t begin, int64_t end) {
  const latent_args *a = context;
  int Q = a->heads, D = a->dim, N = a->plain, R = a->rotated, U = a->value;
  for (int64_t m = begin; m < end; m++) {
    const float *q = a->from + m * 3 * Q * D, *k = q + Q * D, *v = k + Q * D;
    float *queries = a->queries + m * Q * (N + R), *keys = a->keys + m * Q * (N + U);
    float *shared = a->shared + (m + 1) * a->columns - R;
    memset(shared, 0, bytes(R));
    for (int h = 0; h < Q; h++, queries += N + R, keys += N + U, q += D, k += D, v += D) {
      for (int i = 0; i < R; i++) queries[N + i] = q[place(a, i)], shared[i] += k[place(a, i)];
      memcpy(queries, q + R, bytes(N));
      memcpy(keys, k + R, bytes(N));
      memcpy(keys + N, v, bytes(U));
    }
  }
}
void latent_heads_backward(const float *dqkv, float *dqueries, float *dkeys, float *dshared, int rows, int columns, int heads,
                           int dim, int plain, int rotated, int value, int interleaved) {
  latent_args a = {dqkv, dqueries, dkeys, dshared, NULL, columns, heads, dim, plain, rotated, value, interleaved};
  parallel(rows, 16, backward_range, &a);
}

typedef struct {
  const float *from;
  float *to;
  int has, keeps;
} narrow_args;

static void narrow_range(void *context, int64_t begin, int64_t end) {
  const narrow_args *a = context;
  int copied = a->has < a->keeps ? a->has : a->keeps;
  for (int64_t head = begin; head < end; head++) {
    float *to = a->to + head * a->keeps;
    memcpy(to, a->from + head * a->has, bytes(copied));
    memset(to + copied, 0, bytes(a->keeps - copied));
  }
}
void heads_narrow(const float *from, float *to, int rows, int heads, int has, int keeps) {
  parallel((int64_t)rows * heads, 256, narrow_range, &(narrow_args){from, to, has, keeps});
}
