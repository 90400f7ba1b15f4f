#!/usr/bin/env bash
# Builds the Linux guest: guests/.cache/linux/{vmlinux,initramfs.cpio.zst,manifest}. README.md says what is in it.
#
#   guests/linux/build.sh            builds what is missing or out of date; silent when nothing is
#   guests/linux/build.sh --update   looks for newer Debian packages first
#   guests/linux/build.sh --compare  builds what is there once more, and fails unless every byte is the same
#
# Everything comes out of Debian packages that are downloaded and unpacked, not installed; fio is built from Debian's
# source, because the packaged one needs 80 MB of libraries. Needs no root, and what scripts/setup.sh guest installs.
# The same packages give the same initramfs, byte for byte: times, owners and order are fixed, and so are fio's flags.
set -Eeuo pipefail
trap 'echo "guest: build.sh failed at line $LINENO: $BASH_COMMAND" >&2' ERR
here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
root=$(readlink -f "$here/../..")
# shellcheck source=scripts/private-apt.sh
. "$root/scripts/private-apt.sh"

out=$root/guests/.cache/linux
packages=$out/packages
export LC_ALL=C TZ=UTC SOURCE_DATE_EPOCH=1700000000
umask 022

# The first name of each line that Debian's release here knows; the kernel first.
package_choices=(
  'linux-image-6.12-cloud-amd64 linux-image-cloud-amd64'
  busybox-static
  e2fsprogs
  'libext2fs2t64 libext2fs2'
  'libcom-err2'
  'util-linux'
  'libblkid1'
  'libuuid1'
  'libmount1'
  'libselinux1'
  'libpcre2-8-0'
  libc6
  libaio-dev
)
# What the kernel must be able to do: loaded in this order, after what they need, unless it is built in.
modules=(virtio_pci virtio_mmio virtio_console virtio_blk ext4)
# Programs that busybox lacks or does less well. They go to /sbin, with their libraries, and are called by path, as
# busybox's shell prefers its own.
programs=(mke2fs e2fsck blkdiscard fstrim fallocate)

say() { printf 'guest: %s\n' "$*"; }
die() {
  printf 'guest: %s\n' "$*" >&2
  exit 1
}

# A key that changes when anything does that the guest is made of, other than newer packages.
inputs() {
  cd "$root"
  sha256sum guests/linux/{build.sh,init,*.c,*.h,report.sh,fio.sh} guests/linux/jobs/* guests/fio/*.fio |
    sha256sum | cut -d ' ' -f 1
}

# Runs "$@" with its output in a log, which is shown when it fails.
quietly() {
  local log=$out/log
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 25 "$log" >&2
    die "failed: $* (the last lines of its output are above; all of it is in ${log#"$root"/})"
  fi
}

# Downloads the packages into $packages, with a file `versions` of NAME=VERSION lines.
download() {
  [[ ! -e $packages/versions ]] || return 0
  say "downloading Debian packages (some 45 MB)"
  rm -rf "$packages" "$packages.new"
  mkdir -p "$packages.new"
  private_apt "$packages.new/apt" sources >"$out/log" 2>&1 || {
    cat "$out/log" >&2
    die "no package lists: this needs Debian 12 or later on x86-64, and its mirror"
  }
  local choice name known names=()
  # shellcheck disable=SC2048,SC2086
  known=$(apt-cache policy ${package_choices[*]} | awk '/^[^ ]/ { name = $1 } /Candidate: [^(]/ { print name }')
  for choice in "${package_choices[@]}"; do
    name=$(first_of "$choice" "$known") || die "Debian's package lists here have none of: $choice"
    names+=("$name")
  done
  # The first is a name that stands for the newest kernel.
  names[0]=$(apt-cache depends --important "${names[0]}" | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
  [[ -n ${names[0]} ]] || die "no kernel package"
  cd "$packages.new"
  quietly apt-get -qq download "${names[@]}"
  quietly apt-get -qq source --download-only fio
  local file
  for file in *.deb; do
    # shellcheck disable=SC2016
    dpkg-deb --show --showformat='${Package}=${Version}\n' "$file"
  done >versions.new
  sed -n 's/^Version: /fio=/p' fio_*.dsc >>versions.new
  sort -u versions.new >versions
  rm -rf apt versions.new
  cd "$root"
  mv "$packages.new" "$packages"
}

# Prints the first of the names in $1 that is in the list $2, where each is a line of its own, with a colon.
first_of() {
  local name
  for name in $1; do
    if grep -qx "$name:" <<<"$2"; then
      printf %s "$name"
      return
    fi
  done
  return 1
}

version_of() { sed -n "s/^$1=//p" "$packages/versions"; }
# unpack DEB FOLDER [tar's arguments]
unpack() { dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" "${@:3}"; }

# Builds fio once per version, which the file's name has, and once per change of this script: $fio.
build_fio() {
  fio=$out/fio-$(version_of fio)-$(sha256sum "$here/build.sh" | head -c 8)
  [[ ! -e $fio ]] || return 0
  rm -f "$out"/fio-*
  compile_fio "$fio"
}

compile_fio() {
  say "building fio $(version_of fio) (half a minute)"
  local src=$work/fio lib
  mkdir -p "$src"
  tar -xf "$(printf '%s\n' "$packages"/fio_*.orig.tar.?z)" -C "$src" --strip-components=1
  lib=$work/libaio
  mkdir -p "$lib"
  unpack "$packages"/libaio-dev_*.deb "$lib"
  # Same path, same bytes: the source's own path must not end up in the program.
  local -x CPATH=$lib/usr/include LIBRARY_PATH=$lib/usr/lib/x86_64-linux-gnu
  cd "$src"
  quietly ./configure --build-static --disable-native --disable-numa --disable-rdma --disable-rados --disable-rbd \
    --disable-gfapi --disable-pmem --disable-http --disable-libnfs --disable-lex --disable-shm --disable-xnvme \
    --extra-cflags="-ffile-prefix-map=$src=. -g0"
  grep -q '^CONFIG_LIBAIO=y' config-host.mak || die "fio's configure did not find libaio"
  quietly make -j "$(nproc)" fio
  strip -s -o "$1.new" fio
  cd "$root"
  mv "$1.new" "$1"
}

# Prints an unsigned little-endian number: $1 file, $2 offset, $3 bytes.
number_at() { od -A n -t "u$3" -j "$2" -N "$3" "$1" | tr -d ' '; }

# The ELF kernel out of a bzImage, whose header says where its payload is (Documentation/arch/x86/boot.rst): an ELF
# file starts by PVH, without unpacking itself first, which saves a second without KVM.
extract_vmlinux() {
  local image=$1 start length
  start=$((($(number_at "$image" 497 1) + 1) * 512 + $(number_at "$image" 584 4)))
  length=$(number_at "$image" 588 4)
  dd if="$image" of="$work/payload" bs=64K iflag=skip_bytes,count_bytes skip="$start" count="$length" status=none
  case $(od -A n -t x1 -N 4 "$work/payload" | tr -d ' ') in
    # The length of the unpacked kernel follows the stream in its last four bytes.
    28b52ffd) head -c -4 "$work/payload" | zstd -dcq >"$2" ;;
    02214c18) head -c -4 "$work/payload" | lz4 -dcq >"$2" ;;
    fd377a58) head -c -4 "$work/payload" | xz -dc --single-stream >"$2" ;;
    *) die "the kernel $image is packed in a way that this script does not know" ;;
  esac
  [[ $(readelf -n "$2" 2>/dev/null) == *Xen* ]] || die "the kernel $image has no PVH entry"
}

build_kernel() {
  release=$(printf '%s\n' "$packages"/linux-image-*.deb)
  release=${release##*/linux-image-}
  release=${release%%_*}
  say "unpacking Linux $release"
  mkdir -p "$work/kernel"
  unpack "$packages"/linux-image-*.deb "$work/kernel" --wildcards './boot/vmlinuz-*' './*lib/modules/*'
  extract_vmlinux "$work/kernel/boot/vmlinuz-$release" "$work/vmlinux"
}

# Prints where the packages have a file of that name: the first path of several.
unpacked() {
  local found
  found=$(find "$work/unpacked" -name "$1" -not -path '*/share/*' | sort | head -n 1)
  [[ -n $found ]] || die "none of the packages has the file $1"
  printf %s "$found"
}

# Copies every library that a program needs, at any depth, to where its loader looks for it.
copy_libraries() {
  local needed library
  for needed in $(readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    [[ ! -e $tree/lib/x86_64-linux-gnu/$needed ]] || continue
    library=$(unpacked "$needed")
    cp -L "$library" "$tree/lib/x86_64-linux-gnu/"
    copy_libraries "$library"
  done
}

# Adds a kernel module after those that it needs. The number keeps the order when the guest loads them by name.
add_module() {
  local file number target needed
  ! grep -q "/${1//_/[-_]}\.ko" "$work"/kernel/{,usr/}lib/modules/*/modules.builtin 2>/dev/null || return 0
  ! compgen -G "$tree/modules/*-$1.ko" >/dev/null || return 0
  file=$(find "$work/kernel" -name "${1//_/[-_]}.ko*")
  target=$work/$1.ko
  case $file in
    *.ko.xz) xz -dc "$file" >"$target" ;;
    *.ko) cp "$file" "$target" ;;
    *) die "the kernel has no module $1, or packs it in a way that this script does not know" ;;
  esac
  for needed in $(readelf -p .modinfo "$target" | sed -n 's/^.*\] *depends=//p' | tr , ' '); do
    add_module "$needed"
  done
  number=$(find "$tree/modules" -type f | wc -l)
  mv "$target" "$tree/modules/$((number + 10))-$1.ko"
}

build_initramfs() {
  say "packing the initramfs"
  tree=$work/tree
  local name deb module applet
  mkdir -p "$tree"/{bin,sbin,lib/x86_64-linux-gnu,lib64,etc,jobs,fio,modules,dev,proc,sys,tmp,mnt} "$work/unpacked"
  for deb in "$packages"/*.deb; do
    [[ $deb == */linux-image-* || $deb == */libaio-dev_* ]] || unpack "$deb" "$work/unpacked"
  done
  cp "$(unpacked busybox)" "$tree/bin/"
  for applet in $("$tree/bin/busybox" --list); do
    [[ $applet == busybox ]] || ln -s busybox "$tree/bin/$applet"
  done
  cp -L "$(unpacked ld-linux-x86-64.so.2)" "$tree/lib64/"
  for name in "${programs[@]}"; do
    cp "$(unpacked "$name")" "$tree/sbin/"
    copy_libraries "$tree/sbin/$name"
  done
  cp "$(unpacked mke2fs.conf)" "$tree/etc/"
  cp "$fio" "$tree/bin/fio"
  for name in vmexit seed; do
    gcc -Os -static -nostdlib -ffreestanding -fno-pie -no-pie -fno-stack-protector -fno-asynchronous-unwind-tables \
      -Wall -Wextra -Werror -Wl,--build-id=none -s -o "$tree/sbin/$name" "$here/$name.c"
  done
  for module in "${modules[@]}"; do add_module "$module"; done
  cp "$here/init" "$tree/init"
  cp "$here/report.sh" "$here/fio.sh" "$tree/lib/"
  cp "$here"/jobs/* "$tree/jobs/"
  cp "$here"/../fio/*.fio "$tree/fio/"
  chmod -R u=rwX,go=rX "$tree"
  chmod 755 "$tree/init" "$tree"/jobs/* "$tree"/bin/{busybox,fio} "$tree"/sbin/*
  find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
  (cd "$tree" && find . | sort | cpio --quiet --reproducible -o -H newc --owner=0:0) |
    zstd -q -19 -T1 >"$work/initramfs.cpio.zst"
  # The kernel wants what somebody appends with `cat` to begin at a multiple of four.
  truncate -s %512 "$work/initramfs.cpio.zst"
}

write_manifest() {
  {
    printf 'kernel=%s\nfio=%s\n' "$release" "$(version_of fio)"
    sed 's/^/package./' "$packages/versions"
    printf 'sha256.vmlinux=%s\n' "$(sha256sum <"$work/vmlinux" | cut -d ' ' -f 1)"
    printf 'sha256.initramfs.cpio.zst=%s\n' "$(sha256sum <"$work/initramfs.cpio.zst" | cut -d ' ' -f 1)"
    # The last line, so that a manifest that has it is whole, and the files beside it are of the same build.
    printf 'inputs=%s\n' "$key"
  } >"$work/manifest"
}

update=no compare=no
case ${1:-} in
  '') ;;
  --update) update=yes ;;
  --compare) compare=yes ;;
  *) die "unknown option '$1': there are --update and --compare" ;;
esac

mkdir -p "$out"
# Two builds at once (tests and a demo) would get in each other's way; the second then finds the work done.
exec 9>"$out/lock"
flock -n 9 || { say "waiting for another build" && flock 9; }
key=$(inputs)
current=no
if [[ $update == no && -e $out/vmlinux && -e $out/initramfs.cpio.zst ]] &&
  grep -qsx "inputs=$key" "$out/manifest"; then
  current=yes
fi
[[ $current == no || $compare == yes ]] || exit 0
[[ $current == yes || $compare == no ]] || die "there is no build to compare with, or it is out of date: build first"

[[ $(uname -m) == x86_64 ]] || die "the guest is for x86-64 only, and this is $(uname -m)"
"$root/scripts/setup.sh" --check guest || die "scripts/setup.sh guest installs what is missing"
started=$SECONDS
rm -rf "$out"/work.*
work=$(mktemp -d "$out/work.XXXXXX")
trap 'rm -rf "$work"' EXIT
if [[ $compare == yes ]]; then
  # A folder of another name, and fio built again: neither may show in the result.
  compile_fio "$work/fio-again"
  fio=$work/fio-again
else
  [[ $update == no ]] || rm -rf "$packages"
  download
  build_fio
fi
build_kernel
build_initramfs
write_manifest
if [[ $compare == yes ]]; then
  cmp "$work/manifest" "$out/manifest" || die "the second build differs from the first"
  say "built the same bytes again in $((SECONDS - started)) s"
  exit 0
fi
rm -f "$out/manifest" "$out/log"
mv "$work/vmlinux" "$work/initramfs.cpio.zst" "$out/"
mv "$work/manifest" "$out/manifest"
say "built in $((SECONDS - started)) s: ${out#"$root"/}/{vmlinux,initramfs.cpio.zst,manifest}"
