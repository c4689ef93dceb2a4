package passt

import (
	"encoding/binary"
	"net"
	"os/exec"
	"testing"
	"time"
)

// BlocksLoopback tells the truth: a hostile guest, which can send any frame, asks for a
// connection to a port on the host's 127.0.0.1.
func TestBlocksLoopback(t *testing.T) {
	program, err := exec.LookPath("passt")
	if err != nil {
		t.Fatal(err)
	}
	guest := start(t).qemu
	service, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer service.Close()
	reached := make(chan bool, 1)
	go func() {
		service.(*net.TCPListener).SetDeadline(time.Now().Add(2 * time.Second))
		conn, err := service.Accept()
		if err == nil {
			conn.Close()
		}
		reached <- err == nil
	}()
	frame := synTo(netip4(127, 0, 0, 1), service.Addr().(*net.TCPAddr).Port)
	if _, err := guest.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)); err != nil {
		t.Fatal(err)
	}
	got := <-reached
	if blocks := BlocksLoopback(t.Context(), program); blocks == got {
		t.Errorf("passt blocks the loopback address: %v, and a service there was reached: %v", blocks, got)
	}
}

func netip4(a, b, c, d byte) [4]byte { return [4]byte{a, b, c, d} }

// synTo is an Ethernet frame with the beginning of a TCP connection.
func synTo(to [4]byte, port int) []byte {
	from := netip4(192, 0, 2, 77)
	be := binary.BigEndian
	tcp := be.AppendUint16(nil, 40000)
	tcp = be.AppendUint16(tcp, uint16(port))
	tcp = be.AppendUint32(tcp, 1000)
	tcp = append(tcp, 0, 0, 0, 0, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0)
	pseudo := append(append(append([]byte{}, from[:]...), to[:]...), 0, 6, 0, byte(len(tcp)))
	be.PutUint16(tcp[16:], checksum(append(pseudo, tcp...)))
	ip := []byte{0x45, 0, 0, byte(20 + len(tcp)), 0, 1, 0, 0, 64, 6, 0, 0}
	ip = append(append(ip, from[:]...), to[:]...)
	be.PutUint16(ip[10:], checksum(ip))
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 0x52, 0x54, 0, 0x11, 0x22, 0x33, 8, 0)
	return append(append(frame, ip...), tcp...)
}

func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
