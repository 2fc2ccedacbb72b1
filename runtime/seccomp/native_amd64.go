package seccomp

import runspec "github.com/opencontainers/runtime-spec/specs-go"

const nativeArch = runspec.ArchX86_64
