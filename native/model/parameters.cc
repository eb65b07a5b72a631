#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/moment_codes.h"
#include "cuda/dry.h"
#include "model/gradients.h"
#include "model/rope.h"
#include "model/weights.h"
#include "parallel/mesh.h"

namespace tokenring {

struct Parameters::Impl {
  Device& device;
  const Ops& ops;
  DecoderConfig config;
  Mesh* mesh;
  int stage;
  Layout layout;
  Share share;
  MomentForm form;
  Buffer::Of place;  // of masters and moments
  Buffer master, first_moment, second_moment, first_scale, second_scale, rope_cos, rope_sin;
  Weights weights;
  Gradients gradients;
  int64_t version = 0, step = 0;
  bool summed = false;

  Impl(Device& device, const DecoderConfig& given, Mesh* mesh, MomentForm form, bool on_host)
      : device(device),
        ops(device.ops()),
        config(checked(ops, given)),
        mesh(mesh),
        stage(mesh ? mesh->options().shard : 0),
        layout(config, stage > 0 ? mesh->options().shard_size : 1, form == MomentForm::eight_bit ? kMomentBlock : 64),
        share(layout, stage > 0 ? mesh->rank() % layout.parts : 0),
        form(form),
        place(on_host ? Buffer::Of::host : Buffer::Of::device),
        master(device, flat_bytes(), "weights", place),
        weights(device, config, layout, share, flat(master), stage, mesh, on_host),
        gradients(device, config, layout, share, stage, mesh) {
    const std::unique_ptr<Stream> stream = device.stream();
    ops.zero(*stream, flat(master));
    make_rope(*stream);
    stream->synchronize();
  }

  static const DecoderConfig& checked(const Ops& ops, const DecoderConfig& config) {
    config.check();
    // Heads that the backend's attention does not take are refused here, before any memory is.
    ops.attention_workspace({}, 1, config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    return config;
  }

  // Moments, zero. A policy that only computes gradients never asks for them; one that only samples or scores (an
  // engine, a reference) asks for no gradients either.
  void need_moments() {
    if (second_moment.data()) return;
    const std::unique_ptr<Stream> stream = device.stream();
    const bool coded = form == MomentForm::eight_bit;
    const size_t bytes = coded ? static_cast<size_t>(share.elements) : flat_bytes();
    Buffer first(device, bytes, "moments", place), second(device, bytes, "moments", place);
    for (Buffer* buffer : {&first_scale, &second_scale})
      *buffer = Buffer(device, coded ? moment_blocks(share.elements) * sizeof(float) : 0, "moments", place);
    zero_moments(*stream, first, second);
    stream->synchronize();
    first_moment = std::move(first);
    second_moment = std::move(second);
  }

  Tensor moment(const Buffer& buffer) const {
    return form == MomentForm::float32 ? flat(buffer) : tensor(buffer.data(), DType::u8, {share.elements});
  }
  Tensor scale(const Buffer& buffer) const {
    if (form == MomentForm::float32) return {};
    return tensor(buffer.data(), DType::f32, {moment_blocks(share.elements)});
  }
  void zero_moments(Stream& stream, const Buffer& first, const Buffer& second) const {
    for (const Buffer* buffer : {&first, &second}) ops.zero(stream, moment(*buffer));
    for (const Buffer* buffer : {&first_scale, &second_scale})
      if (buffer->data()) ops.zero(stream, scale(*buffer));
  }

  // In double: the angle of a late position loses its low bits in float.
  void make_rope(Stream& stream) {
    const int64_t positions = config.positions(), half = config.head_dim / 2;
    const RopeFrequencies rope = rope_frequencies(config);
    std::vector<float> cos(positions * half), sin(positions * half);
    // At a hundred thousand positions it is most of what planning a rank takes, and a GPU that is not there reads none.
    for (int64_t i = 0; i < half && !cuda::DryGpu::here(); ++i) {
      for (int64_t p = 0; p < positions; ++p) {
        const double angle = static_cast<double>(p) * rope.radians[i];
        cos[p * half + i] = static_cast<float>(rope.magnitude * std::cos(angle));
        sin[p * half + i] = static_cast<float>(rope.magnitude * std::sin(angle));
      }
    }
    rope_cos = Buffer(device, cos.size() * sizeof(float));
    rope_sin = Buffer(device, sin.size() * sizeof(float));
    stream.copy_to_device(rope_cos.data(), cos.data(), rope_cos.bytes());
    stream.copy_to_device(rope_sin.data(), sin.data(), rope_sin.bytes());
    stream.synchronize();
  }

  // What every rank of the shard group says, in their order.
  template <class Value>
  std::vector<Value> over_shares(Value mine) const {
    std::vector<Value> all{mine};
    if (stage == 0 || !mesh->shard()) return all;
    const std::vector<std::byte> said = mesh->gather(*mesh->shard(), &mine, sizeof(mine));
    all.resize(said.size() / sizeof(mine));
    std::memcpy(all.data(), said.data(), said.size());
    return all;
  }

  size_t flat_bytes() const { return static_cast<size_t>(share.elements) * sizeof(float); }
  Tensor flat(const Buffer& buffer) const { return tensor(buffer.data(), DType::f32, {share.elements}); }
};

Parameters::Parameters(Device& device, DecoderConfig config, Mesh* mesh, MomentForm moments, bool on_host)
    : impl_(std::make_unique<Impl>(device, config, mesh, moments, on_host)) {}
Parameters::~Parameters() = default;

const DecoderConfig& Parameters::config() const { return impl_->config; }
int Parameters::stage() const { return impl_->stage; }
bool Parameters::on_host() const { return impl_->place == Buffer::Of::host; }
const std::vector<NamedSlice>& Parameters::slices() const { return impl_->layout.slices; }
const std::vector<Fragment>& Parameters::fragments() const { return impl_->share.fragments; }
int Parameters::holders() const { return impl_->mesh ? impl_->mesh->size() / impl_->layout.parts : 1; }
int Parameters::holder() const { return impl_->mesh ? impl_->mesh->rank() / impl_->layout.parts : 0; }
bool Parameters::is_first() const { return !impl_->mesh || impl_->mesh->rank() == 0; }
int64_t Parameters::elements() const { return impl_->share.elements; }
int64_t Parameters::version() const { return impl_->version; }
Tensor Parameters::master() { return impl_->flat(impl_->master); }
Tensor Parameters::gradient() {
  impl_->gradients.need();
  return impl_->gradients.sum();
}
bool Parameters::has_moments() const { return impl_->second_moment.data() != nullptr; }
Tensor Parameters::first_moment() {
  impl_->need_moments();
  return impl_->moment(impl_->first_moment);
}
Tensor Parameters::second_moment() {
  impl_->need_moments();
  return impl_->moment(impl_->second_moment);
}
OptimiserState Parameters::optimiser_state() {
  const Impl& p = *impl_;
  const Tensor first = first_moment(), second = second_moment();
  return {master(),
          p.gradients.any() ? gradient() : Tensor{},
          first,
          second,
          p.scale(p.first_scale),
          p.scale(p.second_scale)};
}
int64_t Parameters::optimiser_step() const { return impl_->step; }
void Parameters::set_optimiser_step(int64_t step) { impl_->step = step; }
void Parameters::raise_version(int64_t version) { impl_->version = std::max(impl_->version, version); }

void Parameters::complete_gradients(Stream& stream) {
  impl_->gradients.need();
  impl_->gradients.complete(stream);
}

bool Parameters::gradients_summed() const { return impl_->summed; }
void Parameters::set_gradients_summed(bool summed) { impl_->summed = summed; }

void Parameters::zero_gradients(Stream& stream) {
  impl_->summed = false;
  impl_->gradients.zero(stream);
}

void Parameters::finish_step(Stream& stream) {
  impl_->summed = false;
  impl_->gradients.finish(stream);
}

void Parameters::reset_optimiser(Stream& stream) {
  impl_->step = 0;
  if (impl_->gradients.any()) zero_gradients(stream);
  if (has_moments()) impl_->zero_moments(stream, impl_->first_moment, impl_->second_moment);
}

std::string Parameters::first_non_finite(Stream& stream, Tensor flat, bool everywhere) const {
  std::vector<float> values;
  const size_t none = slices().size();
  size_t first = none;
  for (const Fragment& fragment : fragments()) {
    values.resize(static_cast<size_t>(fragment.elements));
    stream.copy_to_host(values.data(), flat.f32() + fragment.offset, values.size() * sizeof(float));
    stream.synchronize();
    if (std::all_of(values.begin(), values.end(), [](float value) { return std::isfinite(value); })) continue;
    first = fragment.slice;
    break;
  }
  if (everywhere) {
    for (const size_t other : impl_->over_shares(first)) first = std::min(first, other);
  }
  return first == none ? std::string() : slices()[first].name;
}

double Parameters::sum_over_shares(double mine) const {
  double sum = 0;
  for (const double each : impl_->over_shares(mine)) sum += each;
  return sum;
}

void Parameters::agree(const std::function<void()>& work) const {
  if (!impl_->mesh) return work();
  std::exception_ptr mine;
  try {
    work();
  } catch (...) {
    mine = std::current_exception();
  }
  impl_->mesh->fail_together(mine);
}

int64_t Parameters::of_first(int64_t mine) const {
  if (!impl_->mesh) return mine;
  const std::vector<std::byte> said = impl_->mesh->gather(impl_->mesh->world(), &mine, sizeof(mine));
  std::memcpy(&mine, said.data(), sizeof(mine));
  return mine;
}

void Parameters::publish(Stream& stream, bool rounded) {
  impl_->weights.publish(stream, rounded);
  ++impl_->version;
}

void Parameters::round(Stream& stream, int64_t offset, Tensor weights) {
  impl_->weights.round(stream, offset, weights);
}

RopeTable Parameters::rope() const {
  const Impl& p = *impl_;
  const int64_t positions = p.config.positions(), half = p.config.head_dim / 2;
  const auto table = [&](const Buffer& buffer) { return tensor(buffer.data(), DType::f32, {positions, half}); };
  return RopeTable{table(p.rope_cos), table(p.rope_sin)};
}

// --- seams ---------------------------------------------------------------------------------------------

Tensor Parameters::acquire_embedding(Schedule& schedule) {
  impl_->gradients.begin();
  return impl_->weights.acquire_embedding(schedule);
}

// Gathers go ahead of the sums that were ready before them: the next layer waits for the former alone.
LayerWeights Parameters::acquire(Schedule& schedule, int layer) {
  const LayerWeights weights = impl_->weights.acquire(schedule, layer);
  impl_->gradients.flush(schedule);
  return weights;
}

HeadWeights Parameters::acquire_head(Schedule& schedule) { return impl_->weights.acquire_head(schedule); }

HeadGradients Parameters::head(Schedule& schedule) {
  impl_->gradients.need();
  return impl_->gradients.head(schedule);
}
void Parameters::ready_head(Schedule& schedule) { impl_->gradients.ready(schedule, kHeadUnit); }

LayerGradients Parameters::layer(Schedule& schedule, int layer) {
  impl_->gradients.need();
  return impl_->gradients.layer(schedule, layer);
}
void Parameters::ready(Schedule& schedule, int layer) { impl_->gradients.ready(schedule, layer); }

Tensor Parameters::embedding(Schedule& schedule) {
  impl_->gradients.need();
  return impl_->gradients.embedding(schedule);
}
void Parameters::ready_embedding(Schedule& schedule) { impl_->gradients.ready(schedule, kEmbeddingUnit); }

std::vector<Bucket> Parameters::buckets(int unit) {
  impl_->gradients.need();
  return impl_->gradients.buckets(unit);
}

}  // namespace tokenring
