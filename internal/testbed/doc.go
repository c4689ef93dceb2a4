// Package testbed is test equipment: real parts (libvirtd, QEMU, a registry, a
// guest) on a host of its own, where nothing of the machine is touched.
//
// A package that wants such a host says so:
//
//	func TestMain(m *testing.M) { testbed.Main(m) }
//
// Its tests then run as root inside [host], and can ask for a [Mode]: the
// system's libvirtd, or one of an ordinary user's. Files belong into [Mode.Dir].
package testbed
