// Plans as lists that can be changed and written again, for mutations that keep most of a plan valid.
#pragma once

#include "fuzz/fuzz.h"

namespace effnet::fuzz {

// Writes this build's hash of the op table into the header, if there is one.
void set_op_table_hash(Bytes& plan);

// Renames sizes, repairs what follows from them, exchanges operands, ops and attributes, or breaks a record.
void mutate_plan(Bytes& bytes, Random& random);

}  // namespace effnet::fuzz
