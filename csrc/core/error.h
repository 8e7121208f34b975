// error.h: what the host side throws. The binding turns a kind into the class of the same name in convkern.errors.
#pragma once
#include <stdexcept>
#include <string>

namespace ck {

enum class ErrorKind { kShape, kDType, kUnsupported, kDevice };

struct Error : std::runtime_error {
  ErrorKind kind;
  Error(ErrorKind kind_, const std::string& what) : std::runtime_error(what), kind(kind_) {}
};

[[noreturn]] inline void shape_error(const std::string& what) { throw Error(ErrorKind::kShape, what); }
[[noreturn]] inline void dtype_error(const std::string& what) { throw Error(ErrorKind::kDType, what); }
[[noreturn]] inline void unsupported(const std::string& what) { throw Error(ErrorKind::kUnsupported, what); }

}  // namespace ck
