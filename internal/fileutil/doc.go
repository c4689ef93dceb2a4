// Package fileutil opens and writes files durably.
package fileutil
