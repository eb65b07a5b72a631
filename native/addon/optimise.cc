#include "addon/optimise.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "addon/engine.h"
#include "addon/operands.h"
#include "addon/results.h"
#include "addon/state.h"
#include "core/moment_codes.h"
#include "optim/adamw.h"

namespace tokenring::addon {
namespace {

// One tensor that is trained. Flat.
struct Parameter {
  Tensor weight, gradient, first_moment, second_moment;
  Tensor first_scale, second_scale;  // of moments in eight bits
  bool decay;
};

Tensor flat(const Tensor& t) { return tensor(t.data, t.dtype, {t.elements()}); }

Napi::Array list_argument(Napi::Value value, const char* name) {
  require(value.IsArray(), name, " must be an array");
  return value.As<Napi::Array>();
}

Tensor f32_argument(const Napi::Value& value, const std::string& name, Held& held) {
  const Tensor t = tensor_argument(Arguments(value, name), name, held);
  require(t.dtype == DType::f32, name, " is ", shape_text(t), ", must be f32");
  return flat(t);
}

// The L2 norm over all tensors together, from sums in float64 whose order is fixed.
double norm_of(Compute& on, const std::vector<Tensor>& gradients) {
  const Ops& ops = on.device->ops();
  double total = 0;
  for (size_t i = 0; i < gradients.size(); ++i) {
    const int64_t elements = gradients[i].elements();
    const Buffer workspace(*on.device, ops.sum_of_squares_workspace(elements)), sum(*on.device, sizeof(double));
    const Drain drain{*on.stream};
    double squares = 0;
    ops.sum_of_squares(*on.stream, gradients[i], static_cast<double*>(sum.data()),
                       tensor(workspace.data(), DType::u8, {static_cast<int64_t>(workspace.bytes())}));
    on.stream->copy_to_host(&squares, sum.data(), sizeof(squares));
    on.stream->synchronize();
    const float rounded = static_cast<float>(squares);
    if (!std::isfinite(rounded))
      fail("NON_FINITE", "gradient ", i, " holds NaN or infinity, or its squares overflow; nothing was changed");
    total += double{rounded};
  }
  return std::sqrt(total);
}

}  // namespace

AdamW adamw_argument(const Arguments& from) {
  constexpr double kUnbounded = std::numeric_limits<double>::infinity();
  AdamW options;
  options.learning_rate = from.real("learningRate", 0, kUnbounded);
  options.beta1 = from.real("beta1", 0, 1);
  options.beta2 = from.real("beta2", 0, 1);
  options.epsilon = from.real("epsilon", 0, kUnbounded);
  options.weight_decay = from.real("weightDecay", 0, kUnbounded);
  options.clip_norm = from.real("clipNorm", 0, kUnbounded);
  options.check();
  return options;
}

Napi::Value gradient_norm(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Array list = list_argument(info[0], "gradients");
    const auto held = std::make_shared<Held>();
    std::vector<Tensor> gradients;
    for (uint32_t i = 0; i < list.Length(); ++i)
      gradients.push_back(f32_argument(list.Get(i), "gradients[" + std::to_string(i) + "]", *held));
    return Engine::of(info.Env()).submit<double>(info.Env(), held, [=](Compute& on) { return norm_of(on, gradients); });
  });
}

Napi::Value adamw(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&] {
    const Napi::Array list = list_argument(info[0], "parameters");
    const Arguments options(info[1], "options");
    const AdamW how = adamw_argument(options);
    const int32_t step = options.integer("step", 1, std::numeric_limits<int32_t>::max());
    const bool norm_known = !options.get("gradientNorm").IsUndefined();
    const double known = norm_known ? options.number("gradientNorm", 0, std::numeric_limits<double>::max()) : 0;
    const auto held = std::make_shared<Held>();
    std::vector<Parameter> parameters;
    for (uint32_t i = 0; i < list.Length(); ++i) {
      const std::string name = "parameters[" + std::to_string(i) + "]";
      const Arguments from(list.Get(i), name);
      const auto part = [&](const char* field) { return f32_argument(from.get(field), from.name(field), *held); };
      const bool coded = from.has("firstScale") || from.has("secondScale");
      const auto moment = [&](const char* field) {
        if (!coded) return part(field);
        const Tensor t = tensor_argument(Arguments(from.get(field), from.name(field)), from.name(field), *held);
        require(t.dtype == DType::u8, from.name(field), " is ", shape_text(t), ", must be u8 where it has a scale");
        return flat(t);
      };
      parameters.push_back({part("weight"), part("gradient"), moment("firstMoment"), moment("secondMoment"),
                            coded ? part("firstScale") : Tensor{}, coded ? part("secondScale") : Tensor{},
                            from.boolean("decay")});
      const Parameter& p = parameters.back();
      for (const Tensor* t : {&p.first_scale, &p.second_scale})
        require(!coded || t->elements() == moment_blocks(p.weight.elements()), name, ": a scale has ", t->elements(),
                " elements, must have one for each ", kMomentBlock, " of the weight's ", p.weight.elements());
      for (const Tensor* t : {&p.gradient, &p.first_moment, &p.second_moment})
        require(t->elements() == p.weight.elements(), name, ": all four tensors must have the ", p.weight.elements(),
                " elements of the weight, one has ", t->elements());
    }
    return Engine::of(info.Env()).submit<double>(info.Env(), held, [=](Compute& on) {
      std::vector<Tensor> gradients;
      for (const Parameter& p : parameters) gradients.push_back(p.gradient);
      const double norm = norm_known ? known : norm_of(on, gradients);
      AdamWStep update{how.learning_rate, how.beta1, how.beta2, how.epsilon, how.weight_decay, how.scale(norm), step};
      for (const Parameter& p : parameters) {
        update.weight_decay = p.decay ? how.weight_decay : 0.0f;
        if (p.first_scale)
          on.device->ops().adamw8(*on.stream, update, p.weight, p.gradient, p.first_moment, p.second_moment,
                                  p.first_scale, p.second_scale);
        else
          on.device->ops().adamw(*on.stream, update, p.weight, p.gradient, p.first_moment, p.second_moment);
      }
      return norm;
    });
  });
}

}  // namespace tokenring::addon
