// Numbers as people read them.

/** About four significant digits; powers of ten for the very large and small. */
export function compact(value: number): string {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−").replace(/^-/, "−");
  const text =
    size >= 1e6
      ? `${Number((value / 1e6).toPrecision(3))}M`
      : size >= 1e4
        ? `${Number((value / 1e3).toPrecision(3))}k`
        : String(Number(value.toPrecision(size >= 1e3 ? 4 : 3)));
  return text.replace(/^-/, "−");
}

/** A share in [0, 1] as per cent with one digit. */
export function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}

/** Like `percent`, shorter, for axes: 5 %, 0.25 %. */
export function axisPercent(share: number): string {
  return `${compact(Number((100 * share).toPrecision(3)))} %`;
}

/** Seconds as "12.3 s", "4 min 05 s" or "2 h 05 min". */
export function duration(seconds: number): string {
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)} s`;
  const whole = Math.round(seconds);
  const two = (value: number): string => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}
