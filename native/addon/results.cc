#include "addon/results.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace tokenring::addon {
namespace {

Napi::Value number(Napi::Env env, double value) { return Napi::Number::New(env, value); }

Napi::Value array(Napi::Env env, const std::vector<float>& values) {
  Napi::Float32Array array = Napi::Float32Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

Napi::Value array(Napi::Env env, const std::vector<int32_t>& values) {
  Napi::Int32Array array = Napi::Int32Array::New(env, values.size());
  std::copy(values.begin(), values.end(), array.Data());
  return array;
}

// Tracks by the bits of `after`.
Napi::Array tracks(Napi::Env env, unsigned bits) {
  Napi::Array array = Napi::Array::New(env);
  for (size_t track = 0; track < kTracks; ++track)
    if (bits >> track & 1) array.Set(array.Length(), name_of(static_cast<Track>(track)));
  return array;
}

Napi::Value memory_list(Napi::Env env, const std::vector<HeldMemory>& memory) {
  Napi::Array array = Napi::Array::New(env, memory.size());
  for (uint32_t i = 0; i < memory.size(); ++i) {
    Napi::Object held = Napi::Object::New(env);
    held.Set("purpose", memory[i].purpose);
    held.Set("bytes", number(env, static_cast<double>(memory[i].bytes)));
    array.Set(i, held);
  }
  return array;
}

Napi::Value entries(Napi::Env env, const std::vector<PlannedEntry>& list) {
  // A plan has millions of entries with few names: those are made once, and so are the lists of tracks, which entries
  // share.
  const auto text = [&](const char* value) { return Napi::String::New(env, value); };
  const Napi::String op = text("op"), layer = text("layer"), track = text("track"), after = text("after"),
                     bytes = text("bytes"), flops = text("flops");
  std::map<std::string, Napi::String> ops;
  for (const PlannedEntry& entry : list)
    if (!ops.count(entry.op)) ops.emplace(entry.op, text(entry.op.c_str()));
  std::vector<Napi::String> names;
  for (size_t t = 0; t < kTracks; ++t) names.push_back(text(name_of(static_cast<Track>(t))));
  std::vector<Napi::Array> behind;
  for (unsigned bits = 0; bits < 1u << kTracks; ++bits) behind.push_back(tracks(env, bits));
  Napi::Array array = Napi::Array::New(env, list.size());
  for (uint32_t i = 0; i < list.size(); ++i) {
    const PlannedEntry& entry = list[i];
    const Napi::HandleScope scope(env);
    unsigned bits = 0;
    for (size_t t = 0; t < kTracks; ++t) bits |= static_cast<unsigned>(entry.after[t]) << t;
    Napi::Object object = Napi::Object::New(env);
    object.Set(op, ops.at(entry.op));
    object.Set(layer, number(env, entry.layer));
    object.Set(track, names[static_cast<size_t>(entry.track)]);
    object.Set(after, behind[bits]);
    object.Set(bytes, number(env, static_cast<double>(entry.bytes)));
    object.Set(flops, number(env, static_cast<double>(entry.flops)));
    array.Set(i, object);
  }
  return array;
}

}  // namespace

Napi::Value to_js(Napi::Env env, const MostHeld& held) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("memory", memory_list(env, held.device));
  object.Set("host", memory_list(env, held.host));
  return object;
}

Napi::Value to_js(Napi::Env env, const StepPlan& plan) {
  Napi::Object object = Napi::Object::New(env), passes = Napi::Object::New(env);
  object.Set("memory", memory_list(env, plan.memory));
  object.Set("host", memory_list(env, plan.host));
  passes.Set("score", entries(env, plan.score));
  passes.Set("accumulate", entries(env, plan.accumulate));
  passes.Set("last", entries(env, plan.last));
  passes.Set("optimise", entries(env, plan.optimise));
  object.Set("passes", passes);
  return object;
}

Napi::Value to_js(Napi::Env env, const Nothing&) { return env.Undefined(); }

Napi::Value to_js(Napi::Env env, const int64_t& value) { return number(env, static_cast<double>(value)); }

Napi::Value to_js(Napi::Env env, const double& value) { return number(env, value); }

Napi::Value to_js(Napi::Env env, const Version& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("version", to_js(env, result.version));
  return object;
}

Napi::Value to_js(Napi::Env env, const LossResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("loss", number(env, result.loss));
  object.Set("logprob", array(env, result.logprob));
  object.Set("entropy", array(env, result.entropy));
  object.Set("flags", array(env, result.flags));
  return object;
}

Napi::Value to_js(Napi::Env env, const OptimiserResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("gradientNorm", number(env, result.gradient_norm));
  object.Set("step", to_js(env, result.step));
  object.Set("version", to_js(env, result.version));
  return object;
}

Napi::Value to_js(Napi::Env env, const SampleResult& result) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("tokens", array(env, result.tokens));
  object.Set("logprobs", array(env, result.logprobs));
  object.Set("stopped", Napi::Boolean::New(env, result.stopped));
  object.Set("version", to_js(env, result.version));
  return object;
}

Napi::Value to_js(Napi::Env env, const Sampler::Usage& usage) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("sessions", to_js(env, usage.sessions));
  object.Set("pages", to_js(env, usage.pages));
  object.Set("prefilled", to_js(env, usage.prefilled));
  object.Set("decoded", to_js(env, usage.decoded));
  return object;
}

}  // namespace tokenring::addon
