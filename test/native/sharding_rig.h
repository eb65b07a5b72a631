// Parameters of which each rank of a mesh holds a share, as tensors again.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "mesh_rig.h"
#include "ops_fixture.h"

namespace tokenring {

using Tensors = std::vector<std::vector<float>>;  // by slice

// Sizes that no number of ranks divides.
inline DecoderConfig odd_config(bool tied) {
  DecoderConfig c = tiny_config(tied);
  c.vocab_size = 37;
  c.hidden_size = 23;
  c.intermediate_size = 29;
  c.num_hidden_layers = 3;
  c.num_attention_heads = 3;
  c.num_key_value_heads = 1;
  c.head_dim = 16;
  return c;
}

inline Tensors as_tensors(const std::vector<NamedSlice>& slices, const std::vector<float>& flat) {
  Tensors tensors;
  for (const NamedSlice& slice : slices)
    tensors.emplace_back(flat.begin() + slice.offset, flat.begin() + slice.offset + slice.elements());
  return tensors;
}

inline Tensors random_weights(const DecoderConfig& config) {
  Rig rig(config);
  rig.randomise(5);
  return as_tensors(rig.parameters.slices(), rig.read(rig.parameters.master()));
}

inline void write_share(MeshRank& rank, const Tensors& weights) {
  std::vector<float> flat(static_cast<size_t>(rank.parameters.elements()));
  for (const Fragment& f : rank.parameters.fragments())
    std::copy_n(weights[f.slice].begin() + f.begin, f.elements, flat.begin() + f.offset);
  rank.write(flat);
}

// Puts this rank's share of a flat buffer where it belongs. Ranks write to places of their own, or the same.
inline void put_share(MeshRank& rank, Tensor flat, Tensors& to) {
  const std::vector<float> values = rank.read(flat);
  for (const Fragment& f : rank.parameters.fragments())
    std::copy_n(values.begin() + f.offset, f.elements, to[f.slice].begin() + f.begin);
}

inline Tensors like(const Tensors& other) {
  Tensors tensors;
  for (const auto& each : other) tensors.emplace_back(each.size(), std::nanf(""));
  return tensors;
}

inline double worst(const Tensors& got, const Tensors& expected) {
  double most = 0;
  for (size_t i = 0; i < expected.size(); ++i) most = std::max(most, relative_l2(got[i], expected[i]));
  return most;
}

inline bool same(const Tensors& a, const Tensors& b) {
  for (size_t i = 0; i < b.size(); ++i)
    if (!fixture::same_bits(a[i], b[i])) return false;
  return a.size() == b.size();
}

inline MeshOptions sharded_mesh(int size, int stage, int shard_size) {
  MeshOptions mesh = mesh_of(size);
  mesh.shard = stage;
  mesh.shard_size = shard_size;
  return mesh;
}

}  // namespace tokenring
