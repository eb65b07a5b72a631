// Says of a failure of the policy which step it was and what was being learnt from.
import { isTokenringError, TokenringError } from "../errors.ts";
import { checkAborted } from "./abort.ts";

/**
 * Awaits `work`. A number that is not finite is reported with the place and the documents in front of what the native
 * code says of tensor or token; a pass that `signal` stopped is ERR_TOKENRING_ABORTED, with its reason as the cause.
 */
export async function located<T>(
  work: () => Promise<T>,
  at: {
    where: string;
    documents?: readonly { id: string }[];
    signal?: AbortSignal | undefined;
  },
): Promise<T> {
  try {
    return await work();
  } catch (error) {
    checkAborted(at.signal, at.where);
    if (!isTokenringError(error, "ERR_TOKENRING_NON_FINITE")) throw error;
    const ids = at.documents?.map((document) => document.id) ?? [];
    const over = ids.length > 0 ? ` (documents ${ids.join(", ")})` : "";
    throw new TokenringError(
      "ERR_TOKENRING_NON_FINITE",
      `${at.where}: ${error.message}${over}; lower the learning rate or resume from the last checkpoint`,
      { cause: error, details: { where: at.where, documents: ids } },
    );
  }
}
