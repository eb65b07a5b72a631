// The gate over what the assembler says of CUDA kernels.
import { expect, test } from "vitest";
// @ts-expect-error: plain JavaScript, as the other scripts
import { readableName, readPtxas } from "../../scripts/ptxas.mjs";

const name =
  "_ZN9tokenring4cuda53_GLOBAL__N__95caf1e9_20_attention_forward_cu_8edc330424attention_forward_kernel" +
  "INS1_13ForwardTilingILi64ELi3ELi128ELi2EEELb1EEEvNS0_9TensorMapES5_S5_NS1_17ForwardParametersE";

const log = (stack: number, stores: number, loads: number, remark = "") => `
ptxas info    : 0 bytes gmem
${remark}
ptxas info    : Compiling entry function '${name}' for 'sm_90a'
ptxas info    : Function properties for ${name}
    ${stack} bytes stack frame, ${stores} bytes spill stores, ${loads} bytes spill loads
ptxas info    : Used 128 registers, used 16 barriers
ptxas info    : Compile time = 907.752 ms
`;

test("a kernel in registers passes", () => {
  const injected = "ptxas info    : (C7519) warpgroup.arrive is injected in around line 849 by compiler";
  expect(readPtxas(log(0, 0, 0, injected))).toEqual({
    kernels: [{ name, registers: 128, stack: 0, spills: 0 }],
    faults: [],
  });
});

test.each([
  [8, 0, 0],
  [0, 4, 0],
  [0, 0, 4],
])("a stack frame of %i, stores of %i or loads of %i spilled bytes fail", (...bytes) => {
  const { faults } = readPtxas(log(...bytes));
  expect(faults).toHaveLength(1);
  expect(faults[0]).toContain(name);
});

test.each(["C7508", "C7510", "C7513", "C7514"])("remark %s fails", (code) => {
  const remark = `ptxas info    : (${code}) Potential Performance Loss: in the function '${name}'`;
  expect(readPtxas(log(0, 0, 0, remark)).faults).toEqual([remark]);
});

test("a kernel is listed by its own name and its template's arguments", () => {
  expect(readableName(name)).toBe("attention_forward_kernel<ForwardTiling, 64, 3, 128, 2, 1>");
  expect(readableName("_ZN9tokenring4cuda11rope_kernelElii")).toBe("rope_kernel");
});
