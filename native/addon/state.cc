#include "addon/state.h"

#include <new>
#include <string>

namespace tokenring::addon {

namespace {

std::pair<std::string, std::string> describe(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const Failure& failure) {
    return {failure.code(), failure.what()};
  } catch (const std::bad_alloc&) {
    return {"OUT_OF_MEMORY", "the host's memory is exhausted; use smaller batches or a smaller model"};
  } catch (const std::exception& other) {
    return {"INTERNAL", other.what()};
  }
}

}  // namespace

Napi::Value to_javascript(Napi::Env env, std::exception_ptr error) {
  const auto [code, message] = describe(error);
  const Napi::String js_code = Napi::String::New(env, "ERR_TOKENRING_" + code);
  const State& state = state_of(env);
  if (!state.error_class.IsEmpty()) return state.error_class.New({js_code, Napi::String::New(env, message)});
  Napi::Object plain = Napi::Error::New(env, message).Value();
  plain.Set("code", js_code);
  return plain;
}

}  // namespace tokenring::addon
