// Forms that assets are embedded in because xz finds more that repeats in them. Nothing is left out: decoding gives back each
// byte, and no form is smaller by itself.

export interface Coding {
  readonly encode: (content: Uint8Array) => Uint8Array;
  readonly decode: (coded: Uint8Array) => Uint8Array;
}

export type CodingName = "addresses" | "registers";

export const CODINGS: Readonly<Record<CodingName, Coding>> = {
  /**
   * Machine code of x86-64 with absolute addresses in the place of relative ones: all calls of a function, and all reads of a
   * table, then hold the same four bytes: xz's BCJ filter for calls, and addresses of data (LEA and MOV relative to RIP), too.
   */
  addresses: {
    encode: (code) => moved(code, (offset, next) => offset + next),
    decode: (code) => moved(code, (address, next) => address - next),
  },
  /**
   * PTX whose registers are numbered by what is added since the last line that had a register of the same class in the same
   * place: code that is alike but for its registers is then the same text. A difference d is written 2d, or -2d - 1 below 0.
   */
  registers: {
    encode: (ptx) =>
      renumbered(ptx, (number, last) => {
        const added = number - last;
        return [added >= 0 ? 2 * added : -2 * added - 1, number];
      }),
    decode: (ptx) =>
      renumbered(ptx, (written, last) => {
        const number = last + (written % 2 === 0 ? written / 2 : -(written + 1) / 2);
        return [number, number];
      }),
  },
};

const CALL = 0xe8;
const LEA = 0x8d;
const MOVES = [0x89, 0x8b];
/** The byte after an instruction's code, but for the register: its operand is memory at an offset from the next instruction. */
const OFFSET_FROM_NEXT = 0x05;

/**
 * Code whose offsets became `change(offset, where the next instruction begins)`, of which the low 25 bits are kept with their
 * sign. Only offsets of as many bits are changed, so that a changed one is taken for an offset again; what merely looks like an
 * instruction is changed, too, and changed back.
 */
function moved(code: Uint8Array, change: (value: number, next: number) => number): Uint8Array {
  const to = new Uint8Array(code); // a copy, which a Buffer's slice() is not
  const view = new DataView(to.buffer, to.byteOffset, to.length);
  for (let at = 0; at + 6 <= to.length; ) {
    const operation = to[at]!;
    const isMove = (operation === LEA || MOVES.includes(operation)) && (to[at + 1]! & 0b11000111) === OFFSET_FROM_NEXT;
    const from = operation === CALL ? at + 1 : isMove ? at + 2 : 0;
    if (from === 0) {
      at++;
      continue;
    }
    const next = from + 4;
    const top = to[next - 1]!;
    if (top === 0 || top === 0xff) view.setInt32(from, (change(view.getInt32(from, true), next) << 7) >> 7, true);
    at = next; // past what was looked at, changed or not: encoding and decoding see the same instructions
  }
  return to;
}

/** PTX in which `change(number, last)` gives what is written for a register's number, and the number that was meant. */
function renumbered(
  ptx: Uint8Array,
  change: (number: number, last: number) => readonly [written: number, number: number],
): Uint8Array {
  const numbers = new Map<string, number>(); // the last by class and place in a line
  let place = 0;
  const text = new TextDecoder().decode(ptx).replace(/\n|%([a-z]+)(\d+)/g, (all, name: string, digits: string) => {
    if (all === "\n") {
      place = 0;
      return all;
    }
    const key = `${name} ${place++}`;
    const [written, number] = change(Number(digits), numbers.get(key) ?? 0);
    numbers.set(key, number);
    return `%${name}${written}`;
  });
  return new TextEncoder().encode(text);
}
