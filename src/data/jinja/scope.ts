// Where a template's variables live, what it writes to, and the object `loop`.

import { TemplateError } from "./lexer.ts";
import { charge, grown } from "./limits.ts";
import {
  Attributed,
  DictMap,
  dictEntries,
  equal,
  Func,
  isDict,
  isInt,
  iterate,
  type Named,
  Namespace,
  Range,
  textOf,
  typeFault,
  Undefined,
} from "./values.ts";

export class Scope {
  #own: Map<string, unknown> | null = null;
  constructor(
    readonly parent: Scope | null,
    readonly given: Readonly<Record<string, unknown>> | null = null,
  ) {}

  set(name: string, value: unknown): void {
    this.#own ??= new Map();
    this.#own.set(name, value);
  }

  /** undefined where no scope knows the name. */
  get(name: string): unknown {
    for (let scope: Scope | null = this; scope; scope = scope.parent) {
      const value = scope.#own?.get(name);
      if (value !== undefined) return value;
      if (scope.given && Object.hasOwn(scope.given, name) && scope.given[name] !== undefined) return scope.given[name];
    }
    return GLOBALS[name];
  }
}

export class Output {
  text = "";
  /** Where {% generation %} blocks wrote into it. */
  readonly generated: { readonly from: number; readonly to: number }[] = [];
  write(text: string): void {
    this.text = grown(this.text + text);
  }
}

/** `loop`: the place within a loop. */
export class Loop extends Attributed {
  at = 0;
  #last: { readonly args: readonly unknown[] } | null = null;
  constructor(
    readonly items: readonly unknown[],
    readonly depth: number,
    readonly recurse: ((items: unknown) => string) | null,
  ) {
    super();
  }

  attribute(name: string): unknown {
    const { at, items } = this;
    switch (name) {
      case "index":
        return at + 1;
      case "index0":
        return at;
      case "revindex":
        return items.length - at;
      case "revindex0":
        return items.length - at - 1;
      case "first":
        return at === 0;
      case "last":
        return at === items.length - 1;
      case "length":
        return items.length;
      case "depth":
        return this.depth + 1;
      case "depth0":
        return this.depth;
      case "previtem":
        return at > 0 ? items[at - 1] : new Undefined("there is no previous item");
      case "nextitem":
        return at + 1 < items.length ? items[at + 1] : new Undefined("there is no next item");
      case "cycle":
        return new Func("cycle", (args) => {
          if (args.length === 0) throw new TemplateError("no items for cycling given");
          return args[at % args.length];
        });
      case "changed":
        return new Func("changed", (args) => {
          const same = this.#last !== null && equal([...this.#last.args], [...args]);
          this.#last = { args };
          return !same;
        });
      case "()":
        return this.recurse ?? undefined;
    }
    return undefined;
  }
}

export function callValue(callee: unknown, args: readonly unknown[], named: Named): unknown {
  charge(1);
  if (callee instanceof Func) return callee.call(args, named);
  if (callee instanceof Loop && args.length === 1) {
    if (!callee.recurse) throw new TemplateError("the loop must have the 'recursive' marker to be called recursively");
    return callee.recurse(args[0]);
  }
  throw typeFault("cannot call", callee);
}

/** Fields of dict(...) and namespace(...): of another dict or of pairs, then those by name. */
function fieldsOf(args: readonly unknown[], named: Named): [unknown, unknown][] {
  const pairs = args.flatMap((arg) =>
    isDict(arg) ? dictEntries(arg) : iterate(arg).map((pair) => [...iterate(pair)] as [unknown, unknown]),
  );
  return [...pairs, ...named];
}

const wholeOf = (value: unknown): number => {
  if (!isInt(value)) throw typeFault("range takes whole numbers, not", value);
  return Number(value);
};

const GLOBALS: Readonly<Record<string, unknown>> = {
  __proto__: null,
  range: new Func("range", (args) => {
    if (args.length < 1 || args.length > 3) throw new TemplateError("range takes 1 to 3 numbers");
    const [first, second, step = 1] = args.map(wholeOf) as [number, number?, number?];
    if (step === 0) throw new TemplateError("range() arg 3 must not be zero");
    return second === undefined ? new Range(0, first, 1) : new Range(first, second, step);
  }),
  dict: new Func("dict", (args, named) => {
    const dict = new DictMap();
    for (const [key, value] of fieldsOf(args, named)) dict.set(key, value);
    return dict;
  }),
  namespace: new Func("namespace", (args, named) => {
    const namespace = new Namespace();
    for (const [name, value] of fieldsOf(args, named)) setField(namespace, textOf(name), value);
    return namespace;
  }),
  raise_exception: new Func("raise_exception", (args) => {
    throw new TemplateError(textOf(args[0]));
  }),
};

export function setField(namespace: unknown, name: string, value: unknown): void {
  if (!(namespace instanceof Namespace)) throw new TemplateError("cannot assign attribute on non-namespace object");
  if (name.startsWith("_")) throw new TemplateError(`a namespace's field must not begin with an underscore: '${name}'`);
  namespace.fields.set(name, value);
}
