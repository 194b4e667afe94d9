// Goes through the tokens of a template.

import { failAt, type Token } from "./lexer.ts";

export class TokenReader {
  protected at = 0;
  constructor(readonly tokens: readonly Token[]) {}

  protected get now(): Token {
    return this.tokens[this.at]!;
  }
  protected get ahead(): Token {
    return this.tokens[Math.min(this.at + 1, this.tokens.length - 1)]!;
  }
  protected step(): Token {
    const token = this.now;
    if (token.type !== "end") this.at++;
    return token;
  }
  protected is(type: string): boolean {
    return this.now.type === type;
  }
  protected isName(...names: readonly string[]): boolean {
    return this.is("name") && names.includes(this.now.value);
  }
  protected skip(type: string): boolean {
    if (!this.is(type)) return false;
    this.at++;
    return true;
  }
  protected skipName(name: string): boolean {
    if (!this.isName(name)) return false;
    this.at++;
    return true;
  }
  protected expect(type: string): Token {
    return this.is(type) ? this.step() : this.unexpected(type === "name" ? "a name" : `'${type}'`);
  }
  protected expectName(name: string): Token {
    return this.isName(name) ? this.step() : this.unexpected(`'${name}'`);
  }
  protected unexpected(wanted: string): never {
    const { type, value, line } = this.now;
    return failAt(
      line,
      `expected ${wanted}, found ${type === "end" ? "the template's end" : `'${value.slice(0, 40).trim()}'`}`,
    );
  }
}
