// Token ids as every engine takes them.
import { TokenringError } from "../errors.ts";

/** The tokens as int32, which would cut fractions and wrap large numbers in silence: ERR_TOKENRING_INVALID_ARGUMENT. */
export function tokenIds(tokens: ArrayLike<number>): Int32Array {
  if (tokens instanceof Int32Array) return tokens;
  const ids = Int32Array.from(tokens);
  for (let i = 0; i < ids.length; i++) {
    if (ids[i] !== tokens[i]) {
      throw new TokenringError(
        "ERR_TOKENRING_INVALID_ARGUMENT",
        `tokens[${i}] is ${tokens[i]}, not a token id`,
      );
    }
  }
  return ids;
}
