// Pass@k and standard errors, as the recipe reports them.
import { TokenringError } from "../errors.ts";

/** Arithmetic mean; 0 for no values. */
export function mean(values: readonly number[]): number {
  if (values.length === 0) return 0;
  let sum = 0;
  for (const value of values) sum += value;
  return sum / values.length;
}

/** Standard deviation with `ddof` degrees of freedom taken off (1 = sample, 0 = population). */
export function standardDeviation(values: readonly number[], ddof: 0 | 1): number {
  if (values.length <= ddof) return 0;
  const centre = mean(values);
  let squares = 0;
  for (const value of values) squares += (value - centre) ** 2;
  return Math.sqrt(squares / (values.length - ddof));
}

/**
 * Standard error of the mean, s / sqrt(M) with ddof 1. Over runs of a whole task set it holds the sampling error of
 * the policy, not the error of having drawn these tasks. `null` for fewer than two values: it is unknown then, not 0.
 */
export function sem(values: readonly number[]): number | null {
  if (values.length < 2) return null;
  return standardDeviation(values, 1) / Math.sqrt(values.length);
}

/**
 * Probability that at least one of k episodes drawn without replacement from n, of which c solved the instance, did:
 * 1 - C(n-c, k) / C(n, k), as a product that neither overflows nor cancels (Chen et al. 2021, HumanEval).
 */
export function passAtK(n: number, c: number, k: number): number {
  if (!Number.isInteger(n) || !Number.isInteger(c) || !Number.isInteger(k) || c < 0 || c > n || k < 1) {
    throw new TokenringError(
      "ERR_TOKENRING_INVALID_ARGUMENT",
      `passAtK(n = ${n}, c = ${c}, k = ${k}): whole numbers with 0 <= c <= n and k >= 1 are needed`,
    );
  }
  if (c === 0) return 0;
  if (n - c < k) return 1;
  let none = 1;
  for (let i = n - c + 1; i <= n; i++) none *= 1 - k / i;
  return 1 - none;
}
