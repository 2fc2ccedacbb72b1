//go:build faults

package engine

const faultsBuilt = true
