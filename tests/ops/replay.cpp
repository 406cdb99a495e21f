// Replays calls of the native library on another machine, or on an emulated one: tests/ops/test_aarch64.py writes the
// calls with their buffers into a file, and compares the outputs.
//
//     replay CALLS OUTPUTS
//
// CALLS: for each call three int64 (function, bytes of the call, number of buffers), the call, and for each buffer three
// int64 (bytes, place of its pointer, whether it is an output) and its bytes. Places past the call are in the first
// buffer: the layers of an encoder. OUTPUTS: the bytes of the
// outputs in the same order. Names of the instruction set, the int8 unit and the usable extensions go to stdout.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" {
int sb_abi_version();
const char* sb_chosen();
const char* sb_int8_chosen();
const char* sb_objects();
const char* sb_extension(int i, int32_t* state);
int sb_linear(const void* call);
int sb_int8_linear(const void* call);
int sb_fp16_linear(const void* call, int emulated);
int sb_encoder(const void* call);
}

namespace {

void read(void* to, size_t bytes, FILE* file) {
  if (fread(to, 1, bytes, file) != bytes) {
    fprintf(stderr, "the file of calls is cut\n");
    exit(1);
  }
}

char* aligned(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes + 64) != 0) abort();
  return static_cast<char*>(memory);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 1;
  printf("version %d\nchosen %s\nint8 %s\nobjects %s\n", sb_abi_version(), sb_chosen(), sb_int8_chosen(), sb_objects());
  int32_t state;
  for (int i = 0; const char* name = sb_extension(i, &state); i++) printf("extension %s %d\n", name, state);
  FILE *calls = fopen(argv[1], "rb"), *outputs = fopen(argv[2], "wb");
  if (!calls || !outputs) return 1;
  int64_t head[3];
  while (fread(head, 1, sizeof(head), calls) == sizeof(head)) {
    char* call = aligned(head[1]);
    read(call, head[1], calls);
    struct Output {
      char* data;
      size_t bytes;
    };
    std::vector<Output> results;
    char* first = nullptr;
    for (int64_t i = 0; i < head[2]; i++) {
      int64_t buffer[3];
      read(buffer, sizeof(buffer), calls);
      char* data = aligned(buffer[0]);
      read(data, buffer[0], calls);
      if (!first) first = data;
      memcpy(buffer[1] < head[1] ? call + buffer[1] : first + buffer[1] - head[1], &data, 8);
      if (buffer[2]) results.push_back({data, static_cast<size_t>(buffer[0])});
    }
    const int64_t function = head[0];
    const int failed = function == 0   ? sb_linear(call)
                       : function == 1 ? sb_int8_linear(call)
                       : function == 2 ? sb_fp16_linear(call, 1)
                                       : sb_encoder(call);
    if (failed) {
      fprintf(stderr, "the library refuses a call of function %d\n", static_cast<int>(head[0]));
      return 1;
    }
    for (const Output& each : results) fwrite(each.data, 1, each.bytes, outputs);
  }
  return fclose(outputs);
}
