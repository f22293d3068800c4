// edgeapp.cu as a library of plain functions; see cuda_on_cpu.h.

#include "cuda_on_cpu.h"

#include "edgeapp.cu"

struct PrepareArguments {
  const Byte *pixels;
  const Picture *pictures;
  void *tensor;
  Network network;
};

struct FilterArguments {
  const void *tensor;
  void *results;
  Head head;
};

struct SuppressArguments {
  const void *picked;
  void *results;
  Suppression rules;
};

#define PREPARE(name)                                                                                    \
  extern "C" void run_##name(const int *grid, const Byte *pixels, const Picture *pictures, void *tensor, \
                             const Network *network) {                                                   \
    PrepareArguments all = {pixels, pictures, tensor, *network};                                         \
    run_grid(grid, [](void *at) {                                                                        \
      PrepareArguments &all = *(PrepareArguments *)at;                                                   \
      name(all.pixels, all.pictures, all.tensor, all.network);                                           \
    }, &all);                                                                                            \
  }
PREPARE(prepare_antialias)
PREPARE(prepare_plain)

#define RUN_FILTER(name)                                                                                \
  extern "C" void run_##name(const int *grid, const void *tensor, void *results, const Head *head) { \
    FilterArguments all = {tensor, results, *head};                                                  \
    run_grid(grid, [](void *at) {                                                                    \
      FilterArguments &all = *(FilterArguments *)at;                                                 \
      name(all.tensor, all.results, all.head);                                                       \
    }, &all);                                                                                        \
  }
RUN_FILTER(filter_columns_float32)
RUN_FILTER(filter_columns_float16)
RUN_FILTER(filter_rows_float32)
RUN_FILTER(filter_rows_float16)
RUN_FILTER(filter_objectness_float32)
RUN_FILTER(filter_objectness_float16)

extern "C" void run_suppress(const int *grid, const void *picked, void *results, const Suppression *rules) {
  SuppressArguments all = {picked, results, *rules};
  run_grid(grid, [](void *at) {
    SuppressArguments &all = *(SuppressArguments *)at;
    suppress(all.picked, all.results, all.rules);
  }, &all);
}

extern "C" int size_of_picture() { return sizeof(Picture); }
extern "C" int size_of_network() { return sizeof(Network); }
extern "C" int size_of_head() { return sizeof(Head); }
extern "C" int most_suppressed() { return MOST_SUPPRESSED; }
extern "C" int size_of_suppression() { return sizeof(Suppression); }
extern "C" int size_of_candidate() { return sizeof(Candidate); }
