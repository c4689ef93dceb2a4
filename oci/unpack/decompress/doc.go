// Package decompress decompresses the streams of disks: gzip, which can begin in the
// middle, zstd, xz and LZ4 in the framing of Apple.
package decompress
