import { EffnetError } from '../errors.js'
import { OP_TABLE, type OpName } from './op_table.js'
import type { Attrs, InferHints, Inputs, OutputSpec } from './ops/def.js'
import { opDef } from './ops/index.js'
import type { DType, Node, ParamInfo, Shape, Tensor, TensorRole } from './types.js'

export interface NodeOptions {
  name: string
  /** Shapes of outputs that the inputs do not determine (the source of a strided backward convolution). */
  shapes?: readonly (Shape | null)[]
  /** Storage type of the outputs where the op leaves it open. */
  dtype?: DType
  /** Names of optional outputs that are wanted. */
  want?: readonly string[]
  updates?: readonly Tensor[]
  prepare?: boolean
  backward?: boolean
  recomputed?: boolean
  /** Role of the outputs; `activation` unless said. */
  role?: TensorRole
  /** Names of outputs by port; `<node name>` or `<node name>:<port>` unless said. */
  outputNames?: Readonly<Record<string, string>>
  /** Existing tensors to write instead of new ones, by port (gradients, outputs). */
  into?: Readonly<Record<string, Tensor | undefined>>
}

/**
 * A graph under construction. Nodes are in execution order. Autodiff and the optimizer pass append to a graph; every other
 * pass builds a new one, in which a tensor that survives keeps its name (see `find`).
 */
export class Graph {
  readonly tensors: Tensor[] = []
  readonly nodes: Node[] = []
  private readonly names = new Set<string>()
  private readonly byName = new Map<string, Tensor>()

  constructor(readonly name: string) {}

  /** Adds a tensor. Names are unique; a clash is a bug of the caller. */
  tensor(name: string, shape: Shape, dtype: DType, role: TensorRole, more: Partial<Tensor> = {}): Tensor {
    const t: Tensor = { ...more, id: this.tensors.length, name: this.unique(name), shape: [...shape], dtype, role }
    this.tensors.push(t)
    this.byName.set(t.name, t)
    return t
  }

  input(name: string, shape: Shape, dtype: DType): Tensor {
    return this.tensor(name, shape, dtype, 'input')
  }

  parameter(name: string, shape: Shape, param: ParamInfo, trainable = true): Tensor {
    return this.tensor(name, shape, 'f32', 'parameter', { param, trainable })
  }

  buffer(name: string, shape: Shape, param: ParamInfo): Tensor {
    return this.tensor(name, shape, 'f32', 'buffer', { param, trainable: false })
  }

  /**
   * Appends a node; returns its outputs by port name (absent optional outputs are missing).
   * Inputs are given by port name; a variadic port takes an array.
   */
  node(
    op: OpName,
    inputs: Readonly<Record<string, Tensor | readonly Tensor[] | null | undefined>>,
    attrs: Readonly<Record<string, number>>,
    options: NodeOptions,
  ): Record<string, Tensor> {
    const info = OP_TABLE[op]
    const fail = (why: string): never => {
      throw new EffnetError('EFF_INTERNAL', `${op} "${options.name}": ${why}`)
    }
    const flat: (Tensor | null)[] = []
    for (const port of info.inputs) {
      const value = inputs[port.name]
      if (port.variadic) flat.push(...((value as readonly Tensor[] | undefined) ?? []))
      else if (value == null) {
        if (!port.optional) fail(`input ${port.name} is missing`)
        flat.push(null)
      } else flat.push(value as Tensor)
    }
    for (const key of Object.keys(inputs)) if (!info.inputs.some((p) => p.name === key)) fail(`no input ${key}`)
    for (const key of info.attrs)
      if (attrs[key] === undefined || !Number.isFinite(attrs[key])) fail(`attribute ${key} is missing`)
    for (const key of Object.keys(attrs)) if (!info.attrs.includes(key)) fail(`no attribute ${key}`)

    const targets = info.outputs.map((port) => options.into?.[port.name])
    const specs = this.infer(op, flat, attrs, fail, {
      shapes: options.shapes ?? targets.map((t) => t?.shape ?? null),
      dtype: options.dtype ?? targets.find(Boolean)?.dtype,
      updates: options.updates ?? [],
    })
    if (info.updates.length === 0 && options.updates?.length) fail('updates nothing in place')
    const name = this.unique(options.name, 'node:')
    const outputs: (Tensor | null)[] = []
    const result: Record<string, Tensor> = {}
    info.outputs.forEach((port, i) => {
      const spec = specs[i]
      if (!spec || (port.optional && !options.want?.includes(port.name) && !options.into?.[port.name])) {
        outputs.push(null)
        return
      }
      let t = targets[i]
      if (t) {
        if (t.shape.join() !== spec.shape.join() || t.dtype !== spec.dtype) {
          fail(`${port.name} is ${spec.dtype}[${spec.shape}], its target ${t.name} ${t.dtype}[${t.shape}]`)
        }
      } else {
        const label = options.outputNames?.[port.name] ?? (info.outputs.length === 1 ? name : `${name}:${port.name}`)
        t = this.tensor(label, spec.shape, spec.dtype, options.role ?? 'activation')
      }
      outputs.push(t)
      result[port.name] = t
    })
    this.nodes.push({
      id: this.nodes.length,
      op,
      name,
      inputs: flat,
      outputs,
      updates: options.updates ?? [],
      attrs: { ...attrs },
      prepare: options.prepare ?? false,
      backward: options.backward ?? false,
      recomputed: options.recomputed ?? false,
    })
    return result
  }

  /** The tensor of this name. Throws EFF_INTERNAL where there is none. */
  find(name: string): Tensor {
    const t = this.byName.get(name)
    if (!t) throw new EffnetError('EFF_INTERNAL', `graph ${this.name} has no tensor "${name}"`)
    return t
  }

  get parameters(): Tensor[] {
    return this.tensors.filter((t) => t.role === 'parameter')
  }

  get buffers(): Tensor[] {
    return this.tensors.filter((t) => t.role === 'buffer')
  }

  /** The op's shape rule, its complaints with the node's name. */
  private infer(
    op: OpName,
    inputs: Inputs,
    attrs: Attrs,
    fail: (why: string) => never,
    hints: InferHints,
  ): (OutputSpec | null)[] {
    try {
      return opDef(op).infer(inputs, attrs, hints)
    } catch (error) {
      if (error instanceof EffnetError) return fail(error.message)
      throw error
    }
  }

  private unique(name: string, space = ''): string {
    let candidate = name
    for (let i = 1; this.names.has(space + candidate); i++) candidate = `${name}#${i}`
    this.names.add(space + candidate)
    return candidate
  }
}
