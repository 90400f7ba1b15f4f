# shellcheck shell=bash
# An apt of our own: the machine's mirrors, a private place for lists and downloads. To be sourced.
#
# What is written here lives in one folder, which the caller names and removes. The machine's own sources, lists and
# cache are read and never changed, so adding a suite (backports) or source packages for ourselves cannot break the
# updates of the machine, and downloading needs no root.

# private_apt DIR [backports] [sources]
#
# Fills DIR and sets APT_CONFIG, so that apt-get and apt-cache use it from here on. `backports` adds that suite, and
# `sources` adds source packages. Fails when this is no Debian, or when its mirror cannot be reached.
private_apt() {
  local dir=$1 types=deb backports=no option codename mirrors keyring=
  shift
  for option in "$@"; do
    case $option in
      backports) backports=yes ;;
      sources) types='deb deb-src' ;;
    esac
  done
  # shellcheck disable=SC1091
  codename=$(. /etc/os-release && [[ $ID == debian ]] && printf %s "${VERSION_CODENAME:-}") || return 1
  mirrors=$(debian_mirrors "$codename") && [[ -n $mirrors ]] || return 1
  if [[ $backports == yes ]]; then
    # Backports are on the mirror that the suite itself is on.
    mirrors+=$'\n'$(sed -n "s/ $codename\$/ $codename-backports/p" <<<"$mirrors")
  fi
  if [[ -r /usr/share/keyrings/debian-archive-keyring.gpg ]]; then
    keyring=' [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]'
  fi

  mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
  # apt downloads as a user of its own, who must be able to get here.
  chmod 755 "$dir" "$dir/lists" "$dir/cache"
  local type line
  for type in $types; do
    while read -r line; do printf '%s%s %s main\n' "$type" "$keyring" "$line"; done < <(sort -u <<<"$mirrors")
  done >"$dir/sources.list"
  # DEP-11 and translations describe packages to people: megabytes that nobody reads here.
  cat >"$dir/apt.conf" <<EOF
Dir::Etc::SourceList "$dir/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$dir/lists";
Dir::Cache "$dir/cache";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
EOF
  export APT_CONFIG=$dir/apt.conf
  apt-get -qq update
}

# Prints "URI SUITE" for each suite of this Debian release that the machine's own sources name.
debian_mirrors() {
  # --print-uris asks no mirror, needs no root and reads both formats of sources.
  apt-get update --print-uris 2>/dev/null |
    sed -n "s|^'\([^']*\)/dists/\($1[a-z-]*\)/InRelease'.*|\1 \2|p" | sort -u
}
