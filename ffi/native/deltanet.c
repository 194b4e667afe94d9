// The gated delta rule, token by token: the readable reference. A piece of work is one head of one sequence, so that no sum
// depends on what else is computed in the pass.
//
// Of a head's state S[key_dim][value_dim] each token keeps e^g, and writes its value where it differs from what its key finds:
//   S = e^g S,  d = v - S^T k,  S = S + k (beta d)^T,  out = S^T q.
#include "native.h"
#include <math.h>
#include <string.h>

#define CHUNK 64 // tokens between the states that the backward pass keeps

typedef struct {
  const float *mixed, *gates, *decay, *bias, *dout;
  float *out, *dmixed, *dgates, *state, *scratch;
  int64_t room; // floats of scratch of a thread
  const int32_t *sequences, *places, *bounds;
  int key_heads, value_heads, key_dim, value_dim, capacity;
} delta_args;

static inline int64_t mixed_width(const delta_args *a) {
  return 2 * (int64_t)a->key_heads * a->key_dim + (int64_t)a->value_heads * a->value_dim;
}
static inline int64_t value_column(const delta_args *a, int head) {
  return 2 * (int64_t)a->key_heads * a->key_dim + (int64_t)head * a->value_dim;
}

// What a token does to the state of a value head: the share that it keeps and the share of the difference that it writes.
typedef struct {
  float keeps, writes, rate, before; // e^g; beta; exp(decay); a + bias
} token_gates;

static token_gates gates_of(const delta_args *a, int64_t m, int head) {
  const float *row = a->gates + m * 2 * a->value_heads;
  float before = row[a->value_heads + head] + a->bias[head], rate = expf(a->decay[head]);
  float softplus = before > 20.0f ? before : log1pf(expf(before));
  return (token_gates){expf(-rate * softplus), sigmoid(row[head]), rate, before};
}

// A head of q or k with length 1, times `scale`; returns what it was multiplied by.
static float normalised(const float *x, float *y, int dim, float scale) {
  float by = scale / sqrtf(dot(x, x, dim) + 1e-6f);
  for (int i = 0; i < dim; i++) y[i] = x[i] * by;
  return by;
}
static float read_query(const delta_args *a, int64_t m, int head, float *q) {
  const float *x = a->mixed + m * mixed_width(a) + (int64_t)head * a->key_dim;
  return normalised(x, q, a->key_dim, 1.0f / sqrtf((float)a->key_dim));
}
static float read_key(const delta_args *a, int64_t m, int head, float *k) {
  const float *x = a->mixed + m * mixed_width(a) + (int64_t)(a->key_heads + head) * a->key_dim;
  return normalised(x, k, a->key_dim, 1.0f);
}

// `to` = the state after a token; `difference`: d. `to` may be `from`.
static void write_token(const delta_args *a, const float *from, float *to, const float *k, const float *v, token_gates gates,
                        float *difference) {
  int width = a->value_dim;
  memcpy(difference, v, sizeof(float) * (size_t)width);
  for (int i = 0; i < a->key_dim; i++)
    for (int j = 0; j < width; j++) {
      to[i * width + j] = gates.keeps * from[i * width + j];
      difference[j] = fused(-k[i], to[i * width + j], difference[j]);
    }
  for (int i = 0; i < a->key_dim; i++)
    for (int j = 0; j < width; j++) to[i * width + j] = fused(k[i] * gates.writes, difference[j], to[i * width + j]);
}

static void read_out(const delta_args *a, const float *state, const float *q, float *out) {
  memset(out, 0, sizeof(float) * (size_t)a->value_dim);
  for (int i = 0; i < a->key_dim; i++)
    for (int j = 0; j < a->value_dim; j++) out[j] = fused(q[i], state[i * a->value_dim + j], out[j]);
}

static float *scratch_of_thread(const delta_args *a) { return a->scratch + thread_number() * a->room; }

static void forward_range(void *context, int64_t begin, int64_t end) {
  const delta_args *a = context;
  int64_t size = (int64_t)a->key_dim * a->value_dim, width = mixed_width(a);
  float *state = scratch_of_thread(a), *q = state + size, *k = q + a->key_dim, *difference = k + a->key_dim;
  for (int64_t piece = begin; piece < end; piece++) {
    const int32_t *sequence = a->sequences + 2 * (piece / a->value_heads);
    int head = (int)(piece % a->value_heads), key_head = head / (a->value_heads / a->key_heads);
    int64_t last = sequence[0] + sequence[1] - 1;
    memset(state, 0, sizeof(float) * (size_t)size);
    for (int64_t m = sequence[0]; m <= last; m++) {
      read_query(a, m, key_head, q);
      read_key(a, m, key_head, k);
      write_token(a, state, state, k, a->mixed + m * width + value_column(a, head), gates_of(a, m, head), difference);
      read_out(a, state, q, a->out + (m * a->value_heads + head) * a->value_dim);
    }
    if (a->state && a->places[last] >= 0) {
      int64_t slot = a->places[last] / a->capacity;
      memcpy(a->state + (slot * a->value_heads + head) * size, state, sizeof(float) * (size_t)size);
    }
  }
}
void delta_forward(const float *mixed, const float *gates, const float *decay, const float *bias, const int32_t *sequences,
                   int count, const int32_t *places, float *state, int capacity, float *out, float *scratch, int64_t room,
                   int key_heads, int value_heads, int key_dim, int value_dim) {
  delta_args a = {mixed,     gates,  decay, bias,      NULL,        out,     NULL,      NULL,    state,
                  scratch,   room,   sequences, places, NULL, key_heads, value_heads, key_dim, value_dim, capacity};
  parallel((int64_t)count * value_heads, 1, forward_range, &a);
}

// Of one token: the gradient of the state after it becomes that of the state before it.
static void token_backward(const delta_args *a, int64_t m, int head, const float *before, const float *after, const float *q,
                           const float *k, const float *difference, float *gradient, float *dq, float *dk, float *d) {
  int width = a->value_dim, dim = a->key_dim;
  token_gates gates = gates_of(a, m, head);
  const float *dout = a->dout + (m * a->value_heads + head) * width;
  memset(d, 0, sizeof(float) * (size_t)width); // of what the token writes
  for (int i = 0; i < dim; i++) {
    dq[i] += dot(after + i * width, dout, width);
    for (int j = 0; j < width; j++) {
      gradient[i * width + j] = fused(q[i], dout[j], gradient[i * width + j]);
      d[j] = fused(k[i], gradient[i * width + j], d[j]);
    }
  }
  float dwrites = dot(d, difference, width), dkeeps = 0;
  for (int i = 0; i < dim; i++) {
    float *g = gradient + i * width;
    const float *s = before + i * width;
    // The token's key writes, and finds what the state has: its share of the value is -beta d.
    dk[i] = fused(gates.writes, fused(-gates.keeps, dot(s, d, width), dot(g, difference, width)), dk[i]);
    for (int j = 0; j < width; j++) g[j] = fused(-(k[i] * gates.writes), d[j], g[j]);
    dkeeps += dot(g, s, width);
    for (int j = 0; j < width; j++) g[j] *= gates.keeps;
  }
  float *dv = a->dmixed + m * mixed_width(a) + value_column(a, head), *dgates = a->dgates + m * 2 * a->value_heads;
  for (int j = 0; j < width; j++) dv[j] = gates.writes * d[j];
  dgates[head] = dwrites * gates.writes * (1.0f - gates.writes);
  dgates[a->value_heads + head] = -dkeeps * gates.keeps * gates.rate / (1.0f + expf(-gates.before));
}

// A value head of a sequence. Gradients of its normalised q and k are added to those of its key head.
static void head_backward(const delta_args *a, const int32_t *sequence, int head, float *room) {
  int64_t size = (int64_t)a->key_dim * a->value_dim, width = mixed_width(a);
  int key_head = head / (a->value_heads / a->key_heads);
  float *gradient = room, *states = gradient + size, *differences = states + (CHUNK + 1) * size;
  float *q = differences + CHUNK * a->value_dim, *k = q + a->key_dim, *d = k + a->key_dim, *kept = d + a->value_dim;
  int chunks = (sequence[1] + CHUNK - 1) / CHUNK;
  memset(kept, 0, sizeof(float) * (size_t)size);
  for (int c = 0; c + 1 < chunks; c++) {
    memcpy(kept + (c + 1) * size, kept + c * size, sizeof(float) * (size_t)size);
    for (int t = 0; t < CHUNK; t++) {
      int64_t m = sequence[0] + c * CHUNK + t;
      float *state = kept + (c + 1) * size;
      read_key(a, m, key_head, k);
      write_token(a, state, state, k, a->mixed + m * width + value_column(a, head), gates_of(a, m, head), differences);
    }
  }
  memset(gradient, 0, sizeof(float) * (size_t)size);
  for (int c = chunks - 1; c >= 0; c--) {
    int64_t first = sequence[0] + c * CHUNK;
    int tokens = sequence[1] - c * CHUNK < CHUNK ? sequence[1] - c * CHUNK : CHUNK;
    memcpy(states, kept + c * size, sizeof(float) * (size_t)size);
    for (int t = 0; t < tokens; t++) {
      read_key(a, first + t, key_head, k);
      const float *v = a->mixed + (first + t) * width + value_column(a, head);
      float *state = states + t * size;
      write_token(a, state, state + size, k, v, gates_of(a, first + t, head), differences + t * a->value_dim);
    }
    for (int t = tokens - 1; t >= 0; t--) {
      int64_t m = first + t;
      float *dq = a->dmixed + m * width + (int64_t)key_head * a->key_dim, *dk = dq + (int64_t)a->key_heads * a->key_dim;
      const float *state = states + t * size;
      read_query(a, m, key_head, q);
      read_key(a, m, key_head, k);
      token_backward(a, m, head, state, state + size, q, k, differences + t * a->value_dim, gradient, dq, dk, d);
    }
  }
}

// The gradient of a normalised head becomes that of the head: y and `by` are what `normalised` gave, with its scale.
static void normalised_backward(float *dx, const float *y, float by, int dim, float scale) {
  float along = dot(dx, y, dim) / (scale * scale);
  for (int i = 0; i < dim; i++) dx[i] = by * fused(-along, y[i], dx[i]);
}

static void backward_range(void *context, int64_t begin, int64_t end) {
  const delta_args *a = context;
  int each = a->value_heads / a->key_heads;
  int64_t width = mixed_width(a);
  float *room = scratch_of_thread(a);
  for (int64_t piece = begin; piece < end; piece++) {
    const int32_t *sequence = a->sequences + 2 * (piece / a->key_heads);
    int key_head = (int)(piece % a->key_heads);
    for (int i = 0; i < each; i++) head_backward(a, sequence, key_head * each + i, room);
    for (int64_t m = sequence[0]; m < sequence[0] + sequence[1]; m++) {
      float *dq = a->dmixed + m * width + (int64_t)key_head * a->key_dim, *dk = dq + (int64_t)a->key_heads * a->key_dim;
      float by = read_query(a, m, key_head, room);
      normalised_backward(dq, room, by, a->key_dim, 1.0f / sqrtf((float)a->key_dim));
      by = read_key(a, m, key_head, room);
      normalised_backward(dk, room, by, a->key_dim, 1.0f);
    }
  }
}

static void clear_range(void *context, int64_t begin, int64_t end) {
  const delta_args *a = context;
  int64_t width = mixed_width(a);
  memset(a->dmixed + begin * width, 0, sizeof(float) * (size_t)((end - begin) * width));
  for (int64_t m = begin; m < end; m++)
    if (a->bounds[2 * m + 1] <= a->bounds[2 * m])
      memset(a->dgates + m * 2 * a->value_heads, 0, sizeof(float) * 2 * (size_t)a->value_heads);
}
void delta_backward(const float *dout, const float *mixed, const float *gates, const float *decay, const float *bias,
                    const int32_t *bounds, int rows, const int32_t *sequences, int count, float *dmixed, float *dgates,
                    float *scratch, int64_t room, int key_heads, int value_heads, int key_dim, int value_dim) {
  delta_args a = {mixed,     gates,  decay, bias,      dout,        NULL,    dmixed,    dgates,  NULL,
                  scratch,   room,   sequences, NULL, bounds, key_heads, value_heads, key_dim, value_dim, 0};
  parallel(rows, 16, clear_range, &a);
  parallel((int64_t)count * key_heads, 1, backward_range, &a);
}

static void decode_range(void *context, int64_t begin, int64_t end) {
  const delta_args *a = context;
  int64_t size = (int64_t)a->key_dim * a->value_dim, width = mixed_width(a);
  float *q = scratch_of_thread(a), *k = q + a->key_dim, *difference = k + a->key_dim;
  for (int64_t piece = begin; piece < end; piece++) {
    int64_t m = piece / a->value_heads;
    int head = (int)(piece % a->value_heads), key_head = head / (a->value_heads / a->key_heads);
    float *out = a->out + piece * a->value_dim;
    if (a->places[m] < 0) {
      memset(out, 0, sizeof(float) * (size_t)a->value_dim);
      continue;
    }
    float *state = a->state + ((int64_t)(a->places[m] / a->capacity) * a->value_heads + head) * size;
    read_query(a, m, key_head, q);
    read_key(a, m, key_head, k);
    write_token(a, state, state, k, a->mixed + m * width + value_column(a, head), gates_of(a, m, head), difference);
    read_out(a, state, q, out);
  }
}
void delta_decode(const float *mixed, const float *gates, const float *decay, const float *bias, const int32_t *places,
                  float *state, int capacity, float *out, float *scratch, int64_t room, int rows, int key_heads,
                  int value_heads, int key_dim, int value_dim) {
  delta_args a = {mixed,     gates,  decay, bias,      NULL,        out,     NULL,      NULL,    state,
                  scratch,   room,   NULL,  places, NULL, key_heads, value_heads, key_dim, value_dim, capacity};
  parallel((int64_t)rows * value_heads, 1, decode_range, &a);
}
