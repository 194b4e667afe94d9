// Columns that lie by groups of unequal parts, sorted by part, and back.
#include "native.h"
#include <string.h>

typedef struct {
  const float *from;
  float *to;
  int groups, parts[4], back;
} regroup_args;

static void regroup_range(void *context, int64_t begin, int64_t end) {
  const regroup_args *a = context;
  int64_t group = 0;
  for (int part = 0; part < 4; part++) group += a->parts[part];
  int64_t width = a->groups * group;
  for (int64_t m = begin; m < end; m++) {
    int64_t before = 0; // of the parts of a group
    for (int part = 0; part < 4; part++) {
      int size = a->parts[part];
      for (int g = 0; g < a->groups; g++) {
        int64_t apart = m * width + a->groups * before + (int64_t)g * size, within = m * width + g * group + before;
        memcpy(a->to + (a->back ? within : apart), a->from + (a->back ? apart : within), sizeof(float) * (size_t)size);
      }
      before += size;
    }
  }
}
void columns_regroup(const float *from, float *to, int rows, int groups, int first, int second, int third, int fourth,
                     int back) {
  parallel(rows, 16, regroup_range, &(regroup_args){from, to, groups, {first, second, third, fourth}, back});
}
