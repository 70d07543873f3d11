// Something more to do where an object of the page's does something already.

export function chain(object, name, then) {
  const before = object[name]
  object[name] = function (...given) {
    const result = before?.apply(this, given)
    then(...given)
    return result
  }
}
