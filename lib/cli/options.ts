// What several commands' options have in common.
import { InvalidArgumentError } from "commander";

/** Parses a whole number from 0 up; commander puts the option's name before the message. */
export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
    throw new InvalidArgumentError("Give a whole number from 0 up.");
  }
  return value;
}

/** Like `wholeNumber`, from 1 up. */
export function positiveNumber(text: string): number {
  const value = wholeNumber(text);
  if (value === 0) throw new InvalidArgumentError("Give a whole number from 1 up.");
  return value;
}
