# Run in a guest that goes on after it was saved, as root. $now is the time, $seed
# something nobody can guess.

# The guest's clock has stood still.
date -u -s "@$now" >/dev/null || exit 1

# Other guests go on with the same state of the kernel's random number generator. A
# kernel that knows the machine's generation ID has seen that (the driver is called
# vmgenid). Others mix in the seed, and have to be told to use it at once:
# RNDRESEEDCRNG of random(4). Both are of Linux 5.18; what RNDRESEEDCRNG did before did
# not use the seed in all versions.
release=$(uname -r)
major=${release%%.*} minor=${release#*.}
minor=${minor%%[!0-9]*}
if [ "$(uname -s)" != Linux ] || [ "$major" -lt 5 ] || { [ "$major" = 5 ] && [ "$minor" -lt 18 ]; }; then
	echo "only a Linux of version 5.18 or later can renew its random numbers, and this is $(uname -sr)" >&2
	exit 1
fi
echo "$seed" >/dev/urandom || exit 1
for device in /sys/bus/acpi/drivers/vmgenid/*:*; do
	[ -e "$device" ] && exit 0
done
perl -e 'open(R, ">", "/dev/urandom") && ioctl(R, 0x5207, 0) || exit 1' && exit 0
python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)' && exit 0
echo "nothing in it can renew the kernel's random numbers: neither its driver vmgenid, nor perl, nor python3" >&2
exit 1
