// The file of scripts/gpu/shapes.ts: an op of a model a line.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "plan/plan.h"

namespace effnet::test {

struct ShapePort {
  std::string name;
  bool there;
  bool among_weights;
  plan::DType dtype;
  std::vector<int64_t> dims;
};

struct ShapeRow {
  plan::DType dtype;
  std::string op, text;
  std::vector<std::pair<std::string, double>> attrs;
  std::vector<ShapePort> inputs, outputs, updates;
  bool half_gradient = false;  // plan::kOpHalfGradient; of no line of a file
};

inline std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, at);) parts.push_back(part);
  return parts;
}

inline bool dtype_of(const std::string& name, plan::DType& dtype) {
  const char* const names[] = {"f32", "bf16", "f16", "u8", "i32"};
  const auto* found = std::find(std::begin(names), std::end(names), name);
  dtype = static_cast<plan::DType>(found - std::begin(names));
  return found != std::end(names);
}

inline bool parse_ports(const std::string& text, std::vector<ShapePort>& ports) {
  if (text == ".") return true;
  for (const std::string& one : split(text, ',')) {
    const auto sides = split(one, '=');
    if (sides.size() != 2) return false;
    ShapePort port{sides[0], sides[1] != "-", false, {}, {}};
    if (!port.there) {
      ports.push_back(std::move(port));
      continue;
    }
    const auto parts = split(sides[1], ':');
    if (parts.size() != 3) return false;
    port.among_weights = parts[0] == "w";
    if (!dtype_of(parts[1], port.dtype)) return false;
    for (const std::string& dim : split(parts[2], 'x')) port.dims.push_back(std::atoll(dim.c_str()));
    if (port.dims.empty() || port.dims.size() > 4) return false;
    ports.push_back(std::move(port));
  }
  return true;
}

// Whether all lines are what they should be; `problem`: the first that is not.
inline bool read_rows(const std::string& file, std::vector<ShapeRow>& rows, std::string& problem) {
  std::ifstream in(file);
  if (!in) problem = file + " cannot be read";
  for (std::string line; problem.empty() && std::getline(in, line);) {
    const auto fields = split(line, ' ');
    ShapeRow row;
    bool ok = fields.size() == 6 && dtype_of(fields[0], row.dtype) && parse_ports(fields[3], row.inputs) &&
              parse_ports(fields[4], row.outputs) && parse_ports(fields[5], row.updates);
    if (ok) {
      row.op = fields[1];
      row.text = line;
      for (const std::string& attr : fields[2] == "." ? std::vector<std::string>{} : split(fields[2], ',')) {
        const auto sides = split(attr, '=');
        if (sides.size() == 2)
          row.attrs.emplace_back(sides[0], std::strtod(sides[1].c_str(), nullptr));
        else
          ok = false;
      }
    }
    if (!ok) problem = file + ", line " + std::to_string(rows.size() + 1) + ": " + line;
    rows.push_back(std::move(row));
  }
  return problem.empty();
}

}  // namespace effnet::test
