// Spans of OpenTelemetry, through its API alone: without an SDK in the process they cost next to nothing and go nowhere.
import { type Attributes, context, createContextKey, SpanStatusCode, trace } from "@opentelemetry/api";

/** Follows whatever SDK is installed, also one that comes later. */
const tracer = trace.getTracer("tokenring");

const UNTRACED = createContextKey("tokenring work that makes no spans");

/** Runs `work` without spans: for what is done so often, and means so little, that its spans would drown the others. */
export function untraced<T>(work: () => Promise<T>): Promise<T> {
  return context.with(context.active().setValue(UNTRACED, true), work);
}

/** What `work` may say of itself when it knows more: attributes of its span. */
export type Note = (attributes: Attributes) => void;

/**
 * Runs `work` in a span, below the one that is active. A rejection is recorded, marks the span as failed, and goes on.
 * Names of attributes are OpenTelemetry's own where there are such (gen_ai.*), else they begin with "tokenring.".
 */
export function span<T>(name: string, attributes: Attributes, work: (note: Note) => Promise<T>): Promise<T> {
  if (context.active().getValue(UNTRACED) === true) return work(() => {});
  return tracer.startActiveSpan(name, { attributes }, async (active) => {
    try {
      return await work((more) => active.setAttributes(more));
    } catch (error) {
      if (error instanceof Error) active.recordException(error);
      active.setStatus({ code: SpanStatusCode.ERROR, message: String((error as Error)?.message ?? error) });
      throw error;
    } finally {
      active.end();
    }
  });
}
