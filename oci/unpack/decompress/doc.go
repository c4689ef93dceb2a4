// Package decompress decompresses disk streams: gzip, with checkpoints to resume from, zstd,
// xz, and LZ4 in Apple's framing.
package decompress
