// Exceptions at the border to Rust.
#pragma once

#include <cstring>
#include <exception>

namespace sluice {

// The message of what `run` throws (to be freed), or nullptr.
template <typename Run>
char* caught(Run run) {
  try {
    run();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}

}  // namespace sluice
