// Where the parameters of a decoder lie in one flat buffer, by which names Hugging Face knows them, and how the buffer
// is cut between the ranks of a shard group.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace tokenring {

// A Hugging Face tensor as a slice of the flat buffer ("model.layers.0.self_attn.q_proj.weight").
struct NamedSlice {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;  // in elements
  bool decay = true;   // weight decay applies (matrices, not norms and biases)

  int64_t elements() const {
    int64_t n = 1;
    for (const int64_t size : shape) n *= size;
    return n;
  }
};

// What ranks gather and sum in one piece: a run of the flat buffer whose length the number of parts divides.
struct Block {
  int64_t offset = 0, elements = 0;
  int64_t end() const { return offset + elements; }
};

// The embedding, each layer's matrices and then its vectors, the final norm, and the head unless it is tied.
struct Layout {
  struct Layer {
    int64_t qkv, o, gate_up, down, qkv_bias, q_norm, k_norm, input_norm, post_norm;  // offsets in elements
    Block matrices, vectors;
    int64_t begin() const { return matrices.offset; }
    int64_t end() const { return vectors.end(); }
  };

  // Tensors begin at multiples of `align` elements, and so do the `parts` equal parts of each block. One part: nothing
  // but that lies between them. Counted from the start of their block, tensors lie alike for any number of parts.
  explicit Layout(const DecoderConfig&, int parts = 1, int64_t align = 64);

  int parts;
  int64_t align;
  std::vector<NamedSlice> slices;  // by offset
  int64_t elements = 0;            // of the flat buffer; the zeros between slices count
  std::vector<Layer> layers;
  Block embedding, final_norm, head;  // head: the embedding's where it is tied
  std::vector<Block> blocks;          // all, by offset
};

// Some elements of one tensor, and where a rank has them.
struct Fragment {
  size_t slice = 0;                 // index into Layout::slices
  int64_t begin = 0, elements = 0;  // of the tensor, row by row
  int64_t offset = 0;               // in the rank's own flat buffers
};

// The part of every block that belongs to one rank of a group: its own flat buffers hold these parts one after the
// other, in the order of the blocks.
struct Share {
  Share(const Layout&, int index);

  // Where this rank's part of a block lies in the whole buffer, and where in its own.
  Block part(const Block& block) const {
    const int64_t length = block.elements / parts;
    return {block.offset + index * length, length};
  }
  int64_t own(const Block& block) const { return block.offset / parts; }

  int index, parts;
  int64_t elements = 0;
  std::vector<Fragment> fragments;  // by offset; at most one of each slice
};

}  // namespace tokenring
