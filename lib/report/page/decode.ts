// In the browser: from the page's blocks to typed arrays. A closed function: it uses nothing from outside.
import type { LaneName, PackHeader, PageEpisode } from "./types.ts";

/** Blocks are JSON or packs (see lib/report/pack.ts), deflated; base64 where they lie in the page. */
export function createDecode() {
  function fromBase64(text: string): Uint8Array<ArrayBuffer> {
    const native = Uint8Array as unknown as { fromBase64?: (text: string) => Uint8Array<ArrayBuffer> };
    if (native.fromBase64) return native.fromBase64(text);
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  async function inflate(bytes: Uint8Array<ArrayBuffer>): Promise<ArrayBuffer> {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  /** The block of a data element; its text is dropped from the page when `once`. */
  async function block(id: string, once = false): Promise<ArrayBuffer | null> {
    const element = document.getElementById(id);
    if (element === null) return null;
    const bytes = fromBase64((element.textContent ?? "").trim());
    if (once) element.remove();
    return inflate(bytes);
  }

  async function json<T>(id: string): Promise<T | null> {
    const buffer = await block(id, true);
    return buffer === null ? null : (JSON.parse(new TextDecoder().decode(buffer)) as T);
  }

  function unpack(buffer: ArrayBuffer): {
    episodes: PageEpisode[];
    vocabulary: PackHeader["vocabulary"];
  } {
    const size = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size))) as PackHeader;
    const data = 4 + size;
    const float = new Set<LaneName>(["logprobs", "learntLogprobs", "learntEntropies", "learntOldLogprobs"]);
    const episodes = header.episodes.map((head) => {
      const out: Record<string, unknown> = { ...head };
      for (const [name, [offset, length]] of Object.entries(head.lanes) as [LaneName, [number, number]][]) {
        if (name === "tokens") out[name] = new Int32Array(buffer, data + offset, length);
        else if (float.has(name)) out[name] = new Float32Array(buffer, data + offset, length);
        else out[name] = new Uint8Array(buffer, data + offset, length);
      }
      return out as unknown as PageEpisode;
    });
    return { episodes, vocabulary: header.vocabulary };
  }

  return { inflate, block, json, unpack };
}
