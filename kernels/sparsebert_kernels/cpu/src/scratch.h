// Page-aligned scratch memory that a thread reuses across calls.
#pragma once
#include <cstddef>
#include <cstdlib>

namespace SB_ISA {

class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(data_); }

  // Returns at least `bytes` of page-aligned memory with undefined contents.
  void* get(size_t bytes) {
    if (bytes > size_) {
      free(data_);
      data_ = nullptr;
      size_ = 0;
      if (posix_memalign(&data_, 4096, bytes) != 0) abort();
      size_ = bytes;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace SB_ISA
